import { useEffect, useRef, useState } from "react";
import type { ErrorInfo } from "../api/errors";
import { useWords } from "../i18n/words";
import { layout } from "./layout";

interface Props {
  error: ErrorInfo;
  /** Only the last message of a branch can be tried again. */
  last: boolean;
  retry: () => void;
}

/** Longer waits are left to the reader. */
const PATIENCE_MS = 120_000;

export function ErrorNote({ error, last, retry }: Props) {
  const words = useWords();
  const [left, setLeft] = useState(() => secondsLeft(error));
  const latest = useRef(retry);
  useEffect(() => {
    latest.current = retry;
  });
  const counting = last && left !== null && left > 0;

  useEffect(() => {
    if (!counting) return;
    const timer = setInterval(() => {
      const now = secondsLeft(error);
      setLeft(now);
      if (now === 0) latest.current();
    }, 250);
    return () => clearInterval(timer);
  }, [counting, error]);

  return (
    <div className={`error ${error.kind}`} role="alert">
      <p><strong>{words.errors[error.kind]}</strong></p>
      {error.kind === "context" && <p>{words.errors.contextMore}</p>}
      {error.message && error.kind !== "network" && <p className="said">{error.message}</p>}
      {last && (
        <div className="buttons">
          {error.kind === "unauthorized" && (
            <button type="button" onClick={() => layout.set({ settings: true })}>{words.openSettings}</button>
          )}
          {counting && <span className="note" aria-live="off">{words.retryIn(left)}</span>}
          {counting && <button type="button" onClick={() => setLeft(null)}>{words.cancel}</button>}
          <button type="button" className="primary" onClick={retry}>{words.retry}</button>
        </div>
      )}
    </div>
  );
}

/** null: nothing to wait for, or it passed while nobody looked. */
function secondsLeft({ kind, retryAt }: ErrorInfo): number | null {
  if (kind !== "busy" || retryAt === undefined) return null;
  const left = retryAt - Date.now();
  if (left > PATIENCE_MS || left < -2000) return null;
  return Math.max(0, Math.ceil(left / 1000));
}
