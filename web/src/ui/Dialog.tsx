/** A modal dialog; the browser keeps the focus inside and gives it back. */

import { type ReactNode, useEffect, useId, useRef } from "react";
import { useWords } from "../i18n/words";
import { IconButton } from "./IconButton";

interface Props {
  title: string;
  close: () => void;
  children: ReactNode;
}

export function Dialog({ title, close, children }: Props) {
  const element = useRef<HTMLDialogElement>(null);
  const words = useWords();
  const id = useId();
  useEffect(() => {
    const dialog = element.current!;
    if (!dialog.open) dialog.showModal();
    return () => dialog.close();
  }, []);
  return (
    <dialog ref={element} aria-labelledby={id} onCancel={(event) => { event.preventDefault(); close(); }}
      onClick={(event) => { if (event.target === element.current) close(); }}>
      <div className="dialog-body">
        <header>
          <h2 id={id}>{title}</h2>
          <IconButton icon="close" label={words.close} onClick={close} />
        </header>
        {children}
      </div>
    </dialog>
  );
}
