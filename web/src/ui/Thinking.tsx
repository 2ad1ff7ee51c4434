import { useState } from "react";
import { brief, useWords } from "../i18n/words";
import { Markdown } from "../markdown/Markdown";
import type { Running } from "../state/answers";
import type { Message } from "../state/conversation";
import { Icon } from "./Icon";

interface Props {
  message: Message;
  run?: Running;
  words: { copy: string; copied: string; code: string; table: string; image: string };
}

/** The model's thinking, folded until somebody wants it. */
export function Thinking({ message, run, words: markdown }: Props) {
  const words = useWords();
  const [open, setOpen] = useState(false);
  const thinking = run?.phase === "thinking";
  const took = message.stats?.thinking;
  const time = took === undefined ? "" : words.seconds(brief(took / 1000));
  const label = thinking
    ? `${words.thinkingNow}${time ? ` · ${time}` : ""}`
    : time ? words.thoughtFor(time) : words.thought;
  return (
    <div className="thinking">
      <button type="button" aria-expanded={open} onClick={() => setOpen(!open)}>
        <Icon name={open ? "down" : "right"} />
        {thinking && <span className="pulse" aria-hidden="true" />}
        <span>{label}</span>
      </button>
      {open && (
        <div className="thoughts">
          <Markdown text={message.reasoning ?? ""} live={thinking} words={markdown} />
        </div>
      )}
    </div>
  );
}
