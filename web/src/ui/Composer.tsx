import { useEffect, useRef, useState } from "react";
import { useWords } from "../i18n/words";
import * as answers from "../state/answers";
import { chats } from "../state/chats";
import type { Attachment } from "../state/conversation";
import { FileError, readText } from "../state/files";
import { server } from "../state/server";
import { useStore } from "../state/store";
import { ContextMeter } from "./ContextMeter";
import { Icon } from "./Icon";
import { IconButton } from "./IconButton";
import { fitHeight } from "./textarea";

export function Composer() {
  const words = useWords();
  const [text, setText] = useState("");
  const [files, setFiles] = useState<Attachment[]>([]);
  const [problem, setProblem] = useState("");
  const area = useRef<HTMLTextAreaElement>(null);
  const picker = useRef<HTMLInputElement>(null);
  const current = useStore(chats, (value) => value.current);
  const running = useStore(answers.answers, (value) => Boolean(current && value.running[current]));
  const up = useStore(server, (value) => value.state === "up");

  useEffect(() => fitHeight(area.current!, innerHeight * 0.4), [text]);

  const add = async (list: File[]) => {
    setProblem("");
    const added: Attachment[] = [];
    for (const file of list) {
      try {
        added.push(await readText(file, [...files, ...added]));
      } catch (error) {
        if (error instanceof FileError) setProblem(words.fileProblem[error.problem](error.file));
      }
    }
    setFiles((old) => [...old, ...added]);
  };

  useDroppedFiles(add);

  const ready = up && !running && (text.trim() !== "" || files.length > 0);
  const send = () => {
    if (!ready) return;
    answers.ask(text.trim(), files);
    setText("");
    setFiles([]);
    setProblem("");
  };
  const stop = () => {
    if (current) answers.stop(current);
    area.current?.focus();
  };

  return (
    <form className="composer column" onSubmit={(event) => { event.preventDefault(); send(); }}>
      <p className="visually-hidden" id="composer-keys">{words.keysHint}</p>
      {problem && <p className="problem" role="alert">{problem}</p>}
      <div className="box">
        {files.length > 0 && (
          <ul className="files" aria-label={words.attached}>
            {files.map((one, index) => (
              <li key={index}>
                <Icon name="file" /><span>{one.name}</span>
                <IconButton icon="close" label={words.detach(one.name)}
                  onClick={() => setFiles(files.filter((_, at) => at !== index))} />
              </li>
            ))}
          </ul>
        )}
        <textarea id="composer" ref={area} rows={1} value={text} placeholder={words.messageHint}
          aria-label={words.message} aria-describedby="composer-keys" autoFocus
          onChange={(event) => setText(event.target.value)}
          onPaste={(event) => {
            if (!event.clipboardData.files.length) return;
            event.preventDefault();
            void add([...event.clipboardData.files]);
          }}
          onKeyDown={(event) => {
            // Enter also ends the composition of a Chinese word; keyCode 229 is Safari's way to say so.
            const composing = event.nativeEvent.isComposing || event.keyCode === 229;
            if (event.key !== "Enter" || event.shiftKey || composing) return;
            event.preventDefault();
            send();
          }} />
        <div className="box-row">
          <IconButton icon="clip" label={words.attach} onClick={() => picker.current!.click()} />
          <input type="file" multiple hidden ref={picker} data-testid="files"
            onChange={(event) => {
              void add([...(event.target.files ?? [])]); // emptying the field empties its list
              event.target.value = "";
            }} />
          <ContextMeter draft={text} files={files} />
          {running ? (
            <IconButton icon="stop" label={words.stop} className="send" onClick={stop} />
          ) : (
            <IconButton icon="up" label={words.send} type="submit" className="send" disabled={!ready} />
          )}
        </div>
      </div>
    </form>
  );
}

/** Files dropped anywhere on the page. */
function useDroppedFiles(add: (files: File[]) => Promise<void>): void {
  const latest = useRef(add);
  useEffect(() => {
    latest.current = add;
  });
  useEffect(() => {
    const over = (event: DragEvent) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      document.documentElement.dataset.dropping = "true";
    };
    const leave = (event: DragEvent) => {
      if (!event.relatedTarget) delete document.documentElement.dataset.dropping;
    };
    const drop = (event: DragEvent) => {
      delete document.documentElement.dataset.dropping;
      if (!event.dataTransfer?.files.length) return;
      event.preventDefault();
      void latest.current([...event.dataTransfer.files]);
    };
    addEventListener("dragover", over);
    addEventListener("dragleave", leave);
    addEventListener("drop", drop);
    return () => {
      removeEventListener("dragover", over);
      removeEventListener("dragleave", leave);
      removeEventListener("drop", drop);
    };
  }, []);
}
