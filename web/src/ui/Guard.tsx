/** Keeps a fault in one part of the page from taking the rest with it. */

import { Component, type ReactNode } from "react";
import { useWords } from "../i18n/words";

interface Props {
  fallback: (error: Error) => ReactNode;
  children: ReactNode;
}

export class Guard extends Component<Props, { error?: Error }> {
  override state: { error?: Error } = {};

  static getDerivedStateFromError(error: unknown) {
    return { error: error instanceof Error ? error : new Error(String(error)) };
  }

  override render() {
    return this.state.error ? this.props.fallback(this.state.error) : this.props.children;
  }
}

/** In place of the whole page; conversations are in the browser's archive and outlive it. */
export function Broken({ error }: { error: Error }) {
  const words = useWords();
  return (
    <main className="broken" role="alert">
      <h1>{words.broken}</h1>
      <p>{words.brokenMore}</p>
      <pre>{error.message}</pre>
      <p className="buttons start">
        <button type="button" className="primary" onClick={() => location.reload()}>{words.reload}</button>
      </p>
    </main>
  );
}
