import { useEffect, useRef, useState } from "react";
import { useWords } from "../i18n/words";
import { fitHeight } from "./textarea";

/** A question being rewritten. */
export function Editor({ text, done, cancel }: { text: string; done: (text: string) => void; cancel: () => void }) {
  const words = useWords();
  const [value, setValue] = useState(text);
  const area = useRef<HTMLTextAreaElement>(null);
  useEffect(() => {
    area.current!.focus();
    area.current!.setSelectionRange(text.length, text.length);
  }, [text]);
  useEffect(() => fitHeight(area.current!, 400), [value]);
  return (
    <form className="editor" onSubmit={(event) => { event.preventDefault(); done(value); }}>
      <textarea ref={area} value={value} rows={2} aria-label={words.edit}
        onChange={(event) => setValue(event.target.value)}
        onKeyDown={(event) => {
          if (event.key === "Escape") {
            event.preventDefault();
            cancel();
          } else if (event.key === "Enter" && !event.shiftKey && !event.nativeEvent.isComposing) {
            event.preventDefault();
            if (value.trim()) done(value);
          }
        }} />
      <div className="buttons">
        <button type="button" onClick={cancel}>{words.cancel}</button>
        <button type="submit" className="primary" disabled={!value.trim()}>{words.sendEdited}</button>
      </div>
    </form>
  );
}
