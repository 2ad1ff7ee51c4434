import { memo, useMemo, useState } from "react";
import { useWords } from "../i18n/words";
import { Markdown } from "../markdown/Markdown";
import * as answers from "../state/answers";
import type { Running } from "../state/answers";
import * as chats from "../state/chats";
import { type Conversation, type Message, siblings, switchBranch } from "../state/conversation";
import { CopyButton } from "./CopyButton";
import { Editor } from "./Editor";
import { ErrorNote } from "./ErrorNote";
import { Icon } from "./Icon";
import { IconButton } from "./IconButton";
import { layout } from "./layout";
import { StatsLine } from "./StatsLine";
import { Thinking } from "./Thinking";
import { ToolCalls } from "./ToolCalls";

interface Props {
  conversation: Conversation;
  message: Message;
  run?: Running;
  last: boolean;
  /** An answer is being written in this conversation. */
  busy: boolean;
}

export const MessageView = memo(function MessageView(props: Props) {
  const words = useWords();
  const { message } = props;
  const label = { user: words.you, assistant: words.assistant, tool: words.toolResult }[message.role];
  return (
    <article className={`message ${message.role}`} aria-busy={props.run ? true : undefined}>
      <h2 className="who">{label}</h2>
      <div className="what">
        {message.role === "user" && <Question {...props} />}
        {message.role === "assistant" && <Reply {...props} />}
        {message.role === "tool" && (
          <pre className="tool-result" tabIndex={0} role="group" aria-label={words.toolResult}>{message.content}</pre>
        )}
      </div>
    </article>
  );
}, (a, b) => a.message === b.message && a.run === b.run && a.last === b.last && a.busy === b.busy
  // Siblings may come and go without the message changing.
  && Object.keys(a.conversation.messages).length === Object.keys(b.conversation.messages).length);

function Question({ conversation, message, busy }: Props) {
  const words = useWords();
  const [editing, setEditing] = useState(false);
  if (editing) {
    return (
      <Editor text={message.content} cancel={() => setEditing(false)}
        done={(text) => { setEditing(false); answers.edit(conversation.id, message.id, text); }} />
    );
  }
  return (
    <>
      {message.attachments && (
        <ul className="files" aria-label={words.attached}>
          {message.attachments.map((one, index) => (
            <li key={index}>
              <details>
                <summary><Icon name="file" />{one.name}</summary>
                <pre tabIndex={0} role="group" aria-label={one.name}>{one.text}</pre>
              </details>
            </li>
          ))}
        </ul>
      )}
      {message.content && <div className="question">{message.content}</div>}
      <div className="actions">
        <Branches conversation={conversation} message={message} busy={busy} />
        <CopyButton text={message.content} label={words.copy} done={words.copied} />
        <IconButton icon="pencil" label={words.edit} disabled={busy} onClick={() => setEditing(true)} />
        <IconButton icon="bin" label={words.removeBranch} disabled={busy}
          onClick={() => layout.set({ removing: { id: conversation.id, message: message.id } })} />
      </div>
    </>
  );
}

function Reply({ conversation, message, run, last, busy }: Props) {
  const words = useWords();
  const markdown = useMemo(
    () => ({ copy: words.copy, copied: words.copied, code: words.code, table: words.table, image: words.image }),
    [words],
  );
  const empty = !message.content && !message.reasoning && !message.toolCalls?.length;
  const wantsResults = last && !run && Boolean(message.toolCalls?.length) && !message.error && message.finish !== "stopped";
  return (
    <>
      {run && empty && <p className="waiting"><span className="pulse" aria-hidden="true" />{words.waiting}</p>}
      {message.reasoning && <Thinking message={message} run={run} words={markdown} />}
      {message.content && (
        <Markdown text={message.content} live={run?.phase === "answering"} words={markdown} />
      )}
      {message.toolCalls && (
        <ToolCalls calls={message.toolCalls} wants={wantsResults}
          give={(results) => answers.giveResults(conversation.id, message.id, results)} />
      )}
      {message.finish === "stopped" && <p className="note">{words.stoppedNote}</p>}
      {message.finish === "length" && <p className="note">{words.lengthNote}</p>}
      {message.error && (
        <ErrorNote error={message.error} last={last} retry={() => answers.retry(conversation.id, message.id)} />
      )}
      {!(run && empty) && (
        <div className="actions">
          <StatsLine stats={message.stats} />
          <Branches conversation={conversation} message={message} busy={busy} />
          {!run && message.content && <CopyButton text={message.content} label={words.copy} done={words.copied} />}
          {!run && (
            <IconButton icon="again" label={words.regenerate} disabled={busy}
              onClick={() => answers.regenerate(conversation.id, message.id)} />
          )}
        </div>
      )}
    </>
  );
}

/** The way between versions of a message; nothing when there is one only. */
function Branches({ conversation, message, busy }: Pick<Props, "conversation" | "message" | "busy">) {
  const words = useWords();
  const all = siblings(conversation, message.id);
  if (all.length < 2) return null;
  const at = all.findIndex((one) => one.id === message.id);
  const step = (by: number) => {
    chats.change(conversation.id, (old) => switchBranch(old, message.id, by));
    void chats.save(conversation.id);
  };
  return (
    <span className="branches" role="group" aria-label={words.branch(at + 1, all.length)}>
      <IconButton icon="left" label={words.previousBranch} disabled={busy || at === 0} onClick={() => step(-1)} />
      <span aria-hidden="true">{at + 1}/{all.length}</span>
      <IconButton icon="right" label={words.nextBranch} disabled={busy || at === all.length - 1} onClick={() => step(1)} />
    </span>
  );
}
