import { useId, useState } from "react";
import type { ToolCall } from "../api/chat";
import { useWords } from "../i18n/words";
import { Icon } from "./Icon";

interface Props {
  calls: ToolCall[];
  /** The model waits for results. */
  wants: boolean;
  give: (results: string[]) => void;
}

export function ToolCalls({ calls, wants, give }: Props) {
  const words = useWords();
  const [results, setResults] = useState<string[]>([]);
  const id = useId();
  return (
    <form className="tool-calls" onSubmit={(event) => { event.preventDefault(); give(results); }}>
      {calls.map((one, index) => (
        <section key={index} className="tool-call" aria-label={`${words.toolCall}: ${one.name}`}>
          <header><Icon name="wrench" /><span>{words.toolCall}</span><code>{one.name}</code></header>
          <pre tabIndex={0} role="group" aria-label={words.toolArguments}>{pretty(one.arguments)}</pre>
          {wants && (
            <div className="field">
              <label htmlFor={`${id}${index}`}>{words.toolResultFor(one.name)}</label>
              <textarea id={`${id}${index}`} rows={2} placeholder={words.toolResultHint} spellCheck={false}
                value={results[index] ?? ""}
                onChange={(event) => setResults(calls.map((_, at) =>
                  at === index ? event.target.value : (results[at] ?? "")))} />
            </div>
          )}
        </section>
      ))}
      {wants && (
        <div className="buttons">
          <span className="note">{words.toolWaiting}</span>
          <button type="submit" className="primary">{words.toolSend}</button>
        </div>
      )}
    </form>
  );
}

/** Arguments indented once they are complete; as written before. */
export function pretty(text: string): string {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
