/** A code block: its language, a copy button, colours once the highlighter is there. */

import { type ReactNode, useEffect, useMemo, useState } from "react";
import { CopyButton } from "../ui/CopyButton";
import type { Highlight, Node } from "./highlight";

let highlighter: Highlight | undefined;

/** Beyond this, colouring would cost more than it tells. */
const MAX_COLOURED = 60_000;

interface Props {
  text: string;
  language: string;
  live: boolean;
  words: { copy: string; copied: string; code: string };
}

export function Code({ text, language, live, words }: Props) {
  const name = /^[\w+#.-]*/.exec(language)?.[0].toLowerCase() ?? "";
  const [ready, setReady] = useState(highlighter !== undefined);

  useEffect(() => {
    if (ready || !name) return;
    let mounted = true;
    import("./highlight").then((module) => {
      highlighter = module.highlight;
      if (mounted) setReady(true);
    }, () => undefined);
    return () => {
      mounted = false;
    };
  }, [ready, name]);

  const coloured = useMemo(() => {
    if (!ready || !highlighter || !name || text.length > MAX_COLOURED) return text;
    return nodes(highlighter(name, text)) ?? text;
  }, [text, name, ready]);

  const label = name ? `${words.code}: ${name}` : words.code;
  return (
    <figure className="code" data-live={live || undefined}>
      <figcaption>
        <span>{name}</span>
        <CopyButton text={text} label={words.copy} done={words.copied} />
      </figcaption>
      <pre tabIndex={0} role="group" aria-label={label}><code>{coloured}</code></pre>
    </figure>
  );
}

function nodes(list: Node[] | null): ReactNode[] | null {
  return list && list.map((node, index) =>
    typeof node === "string" ? node : <span key={index} className={node.classes}>{nodes(node.children)}</span>);
}
