import { useEffect, useLayoutEffect, useRef, useState } from "react";
import { useWords } from "../i18n/words";
import { answers } from "../state/answers";
import { type Conversation, path } from "../state/conversation";
import { useStore } from "../state/store";
import { Guard } from "./Guard";
import { IconButton } from "./IconButton";
import { MessageView } from "./Message";

/** The branch on show. Follows the text while the reader is at its end, and only then. */
export function Thread({ conversation }: { conversation: Conversation }) {
  const words = useWords();
  const run = useStore(answers, (value) => value.running[conversation.id]);
  const messages = path(conversation);
  const place = useRef<HTMLDivElement>(null);
  const follows = useRef(true);
  const [atEnd, setAtEnd] = useState(true);

  useLayoutEffect(() => {
    follows.current = true;
  }, [conversation.id]);

  useLayoutEffect(() => {
    const element = place.current!;
    if (follows.current) element.scrollTop = element.scrollHeight;
  }, [conversation]);

  // Formulas and colours arrive late and change heights.
  useEffect(() => {
    const element = place.current!;
    const observer = new ResizeObserver(() => {
      if (follows.current) element.scrollTop = element.scrollHeight;
    });
    observer.observe(element.firstElementChild!);
    observer.observe(element);
    return () => observer.disconnect();
  }, []);

  const look = () => {
    const element = place.current!;
    const near = element.scrollHeight - element.scrollTop - element.clientHeight < 60;
    follows.current = near;
    setAtEnd(near);
  };

  return (
    <div className="thread-frame">
      <div className="thread" ref={place} onScroll={look} tabIndex={0} role="region" aria-label={words.conversation}>
        <div className="column">
          {messages.map((message, index) => (
            // A message that cannot be drawn stands as it was written.
            <Guard key={message.id} fallback={() => <pre className="raw">{message.content}</pre>}>
              <MessageView conversation={conversation} message={message}
                run={run?.message === message.id ? run : undefined}
                last={index === messages.length - 1} busy={Boolean(run)} />
            </Guard>
          ))}
        </div>
      </div>
      {!atEnd && (
        <IconButton icon="down" label="↓" className="to-end" aria-label={words.conversation + " ↓"}
          onClick={() => { follows.current = true; place.current!.scrollTop = place.current!.scrollHeight; }} />
      )}
    </div>
  );
}
