import { useEffect, useState } from "react";
import { count, useWords } from "../i18n/words";
import { answers } from "../state/answers";
import { chats } from "../state/chats";
import { type Attachment, path } from "../state/conversation";
import { countTokens, server } from "../state/server";
import { useStore } from "../state/store";
import { userContent } from "../state/wire";

/**
 * How much of the context is used: what the server counted for the last answer, the tokens that
 * came since, and the draft, counted by the server too.
 */
export function ContextMeter({ draft, files }: { draft: string; files: Attachment[] }) {
  const words = useWords();
  const total = useStore(server, (value) => value.context);
  const conversation = useStore(chats, (value) => (value.current ? value.open[value.current] : undefined));
  const run = useStore(answers, (value) => (conversation ? value.running[conversation.id] : undefined));
  const drafted = useDraftTokens(userContent({ content: draft, attachments: files }));

  const branch = conversation ? path(conversation) : [];
  const counted = branch.findLast((message) => message.stats?.promptTokens !== undefined)?.stats;
  const used = (counted ? counted.promptTokens! + counted.tokens : 0) + (run?.chunks ?? 0) + drafted;
  if (!used) return <span className="meter" />;

  const share = total ? Math.min(1, used / total) : 0;
  const text = total ? words.contextOf(count(used), count(total)) : words.contextUsed(count(used));
  return (
    <span className={`meter ${share > 0.9 ? "full" : ""}`}>
      {total !== undefined && (
        <span className="bar" role="meter" aria-label={words.context} aria-valuemin={0}
          aria-valuemax={total} aria-valuenow={Math.min(used, total)} aria-valuetext={text}>
          <span style={{ width: `${Math.max(share * 100, 1)}%` }} />
        </span>
      )}
      <span aria-hidden={total !== undefined}>{text}</span>
      {share > 0.9 && <span className="visually-hidden" role="status">{words.contextNearlyFull}</span>}
    </span>
  );
}

/** Asked for when typing pauses. */
function useDraftTokens(text: string): number {
  const [tokens, setTokens] = useState(0);
  const up = useStore(server, (value) => value.state === "up");
  useEffect(() => {
    const abort = new AbortController();
    const timer = setTimeout(async () => {
      const number = text && up ? await countTokens(text, abort.signal) : 0;
      if (!abort.signal.aborted) setTokens(number ?? 0);
    }, text ? 400 : 0);
    return () => {
      clearTimeout(timer);
      abort.abort();
    };
  }, [text, up]);
  return tokens;
}
