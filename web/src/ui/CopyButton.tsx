import { useEffect, useState } from "react";
import { IconButton } from "./IconButton";

/** Copies, and says so for two seconds. */
export function CopyButton({ text, label, done, worded }: { text: string; label: string; done: string; worded?: boolean }) {
  const [copied, setCopied] = useState(false);
  useEffect(() => {
    if (!copied) return;
    const timer = setTimeout(() => setCopied(false), 2000);
    return () => clearTimeout(timer);
  }, [copied]);
  return (
    <>
      <IconButton icon={copied ? "check" : "copy"} label={label} worded={worded}
        onClick={() => void copy(text).then(setCopied)} />
      <span className="visually-hidden" role="status">{copied ? done : ""}</span>
    </>
  );
}

/** True when it worked. Plain http on another machine has no clipboard API: the old way is tried. */
async function copy(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "visually-hidden";
    document.body.append(area);
    const focused = document.activeElement;
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    if (focused instanceof HTMLElement) focused.focus();
    return done;
  }
}
