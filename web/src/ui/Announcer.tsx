import { useEffect, useState } from "react";
import { useWords } from "../i18n/words";
import { announcement } from "../state/answers";
import { useStore } from "../state/store";

/** Screen readers hear that an answer began, and the answer when it is whole; not every token. */
export function Announcer() {
  const words = useWords();
  const said = useStore(announcement, (value) => value);
  const [text, setText] = useState("");
  useEffect(() => {
    const first = {
      "": "", started: words.announceStarted, finished: words.announceFinished,
      stopped: words.announceStopped, failed: words.announceFailed,
    }[said.kind];
    setText([first, said.text.slice(0, 1500)].filter(Boolean).join(" "));
  }, [said, words]);
  return <div className="visually-hidden" role="status" aria-live="polite" data-testid="announcer">{text}</div>;
}
