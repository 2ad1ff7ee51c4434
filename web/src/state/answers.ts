/** Answers being written: starting, stopping, what they cost. One per conversation at a time. */

import { type Answer, streamChat } from "../api/chat";
import { asInfo } from "../api/errors";
import * as chats from "./chats";
import {
  append, type Attachment, type Conversation, type Message, newId, patch, path, titleFrom,
} from "./conversation";
import { preferences, requestOptions } from "./preferences";
import { connect, server } from "./server";
import { createStore } from "./store";
import { toWire } from "./wire";

export interface Running {
  message: string;
  phase: "waiting" | "thinking" | "answering";
  startedAt: number;
  firstAt?: number;
  thoughtUntil?: number;
  chunks: number;
  abort: AbortController;
}

export const answers = createStore<{ running: Record<string, Running> }>({ running: {} });

/** What a screen reader is told; the number makes the same words twice two announcements. */
export const announcement = createStore<{ kind: "" | "started" | "finished" | "stopped" | "failed"; text: string; count: number }>({
  kind: "", text: "", count: 0,
});

const REDRAW_MS = 33;
const SAVE_MS = 1500;

/** Sends a question in the conversation on show. */
export function ask(content: string, attachments: Attachment[]): void {
  const conversation = chats.currentOrNew();
  const question = message("user", conversation.head, { content });
  if (attachments.length) question.attachments = attachments;
  chats.change(conversation.id, (old) => ({
    ...append(old, question),
    title: old.title || titleFrom(content || attachments[0]?.name || ""),
  }));
  void answer(conversation.id);
}

/** The same question in other words: a sibling of the old one, and its own answer. */
export function edit(id: string, messageId: string, content: string): void {
  const old = chats.get(id)?.messages[messageId];
  if (!old) return;
  const question = message("user", old.parent, { content });
  if (old.attachments) question.attachments = old.attachments;
  chats.change(id, (conversation) => append(conversation, question));
  void answer(id);
}

/** Another answer to the same question, beside the old one. */
export function regenerate(id: string, messageId: string): void {
  const old = chats.get(id)?.messages[messageId];
  if (!old) return;
  chats.change(id, (conversation) => ({ ...conversation, head: old.parent }));
  void answer(id);
}

/** Tries again what failed: the failed answer itself is replaced. */
export function retry(id: string, messageId: string): void {
  const old = chats.get(id)?.messages[messageId];
  if (!old || answers.get().running[id]) return;
  if (old.content || old.reasoning) return regenerate(id, messageId);
  chats.change(id, (conversation) => {
    const { [messageId]: _, ...messages } = conversation.messages;
    return { ...conversation, messages, head: old.parent };
  });
  void answer(id);
}

/** The results of an answer's tool calls, in their order; the model goes on from there. */
export function giveResults(id: string, answerId: string, results: string[]): void {
  const conversation = chats.get(id);
  const calls = conversation?.messages[answerId]?.toolCalls;
  if (!calls) return;
  let parent = answerId;
  const added = calls.map((one, index) => {
    const made = message("tool", parent, { content: results[index] ?? "", toolCallId: one.id });
    parent = made.id;
    return made;
  });
  chats.change(id, (old) => append(old, ...added));
  void answer(id);
}

export function stop(id: string): void {
  answers.get().running[id]?.abort.abort();
}

function message(role: Message["role"], parent: string | null, rest: Partial<Message>): Message {
  return { id: newId(), parent, role, content: "", createdAt: Date.now(), ...rest };
}

/** Asks the server for the answer to the head of a conversation. */
async function answer(id: string): Promise<void> {
  const conversation = chats.get(id);
  if (!conversation || answers.get().running[id]) return;
  const chosen = preferences.get();
  const { models } = server.get();
  const model = models.includes(chosen.model) ? chosen.model : (models[0] ?? chosen.model);
  const request = {
    model: model || undefined,
    messages: toWire(path(conversation), chosen.system),
    ...requestOptions(chosen),
  };
  // Later than its question even when both fall into one millisecond: siblings are sorted by time.
  const reply = message("assistant", conversation.head, { model });
  const run: Running = {
    message: reply.id, phase: "waiting", startedAt: performance.now(), chunks: 0,
    abort: new AbortController(),
  };
  chats.change(id, (old) => append(old, reply));
  setRunning(id, run);
  announce("started", "");
  void chats.save(id);
  const writer = new Writer(id, run);
  let change: Partial<Message>;
  try {
    const done = await streamChat(request, run.abort.signal, (now) => writer.show(now));
    change = { finish: done.finish ?? "stop" };
  } catch (error) {
    change = run.abort.signal.aborted ? { finish: "stopped" } : { error: asInfo(error) };
  }
  writer.finish(change);
  await chats.save(id);
  setRunning(id, undefined);
  // Is it gone altogether? The page then says so, and connects again when it is back.
  if (change.error && ["network", "cut", "server"].includes(change.error.kind)) void connect();
  const said = chats.get(id)?.messages[reply.id]?.content ?? "";
  announce(change.error ? "failed" : change.finish === "stopped" ? "stopped" : "finished", change.error?.message ?? said);
}

function setRunning(id: string, run: Running | undefined): void {
  if (run) chats.writing.add(id);
  else chats.writing.delete(id);
  answers.set(({ running }) => {
    const { [id]: _, ...rest } = running;
    return { running: run ? { ...rest, [id]: run } : rest };
  });
}

function announce(kind: "started" | "finished" | "stopped" | "failed", text: string): void {
  announcement.set(({ count }) => ({ kind, text, count: count + 1 }));
}

/** Carries an answer onto the page, some thirty times a second at most, and into the archive. */
class Writer {
  private latest: Answer | undefined;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private savedAt = performance.now();

  constructor(private readonly id: string, private run: Running) {}

  show(now: Answer): void {
    const at = performance.now();
    const first = this.run.firstAt ?? (now.chunks > 0 ? at : undefined);
    const answering = now.content !== "" || now.toolCalls.length > 0;
    this.run = {
      ...this.run,
      chunks: now.chunks,
      firstAt: first,
      phase: answering ? "answering" : now.reasoning ? "thinking" : "waiting",
      thoughtUntil: now.reasoning && !answering ? at : this.run.thoughtUntil,
    };
    this.latest = now;
    this.timer ??= setTimeout(() => this.draw(), REDRAW_MS);
  }

  private draw(): void {
    this.timer = undefined;
    if (!chats.get(this.id)) return this.run.abort.abort(); // deleted meanwhile: nobody wants the rest
    this.put({});
    setRunning(this.id, this.run);
    if (performance.now() - this.savedAt > SAVE_MS) {
      this.savedAt = performance.now();
      void chats.save(this.id);
    }
  }

  finish(change: Partial<Message>): void {
    clearTimeout(this.timer);
    this.put(change);
  }

  private put(change: Partial<Message>): void {
    const now = this.latest;
    const shown: Partial<Message> = { ...change };
    if (now) {
      shown.content = now.content;
      if (now.reasoning) shown.reasoning = now.reasoning;
      if (now.toolCalls.length) shown.toolCalls = now.toolCalls;
      if (now.model) shown.model = now.model;
      shown.stats = this.stats(now);
    }
    chats.change(this.id, (old: Conversation) => {
      const made = patch(old, this.run.message, shown);
      return { ...made, updatedAt: Math.max(made.updatedAt, Date.now()) };
    });
  }

  private stats(now: Answer): Message["stats"] {
    const { startedAt, firstAt, thoughtUntil } = this.run;
    return {
      promptTokens: now.usage?.prompt,
      cachedTokens: now.usage?.cached,
      tokens: now.usage?.completion || now.chunks,
      exact: Boolean(now.usage?.completion),
      speed: now.timings?.speed,
      firstToken: firstAt === undefined ? undefined : firstAt - startedAt,
      generation: firstAt === undefined ? 0 : this.lastAt(now) - firstAt,
      thinking: firstAt === undefined || thoughtUntil === undefined ? undefined : thoughtUntil - firstAt,
    };
  }

  private lastChunks = 0;
  private lastTime = 0;

  /** When the last text came: the time does not run on while the stream is idle or closing. */
  private lastAt(now: Answer): number {
    if (now.chunks !== this.lastChunks || !this.lastTime) {
      this.lastChunks = now.chunks;
      this.lastTime = performance.now();
    }
    return this.lastTime;
  }
}

/** Tokens a second of an answer, the server's figure first; the first token is the prompt's, not the speed's. */
export function speed(stats: Message["stats"]): number | undefined {
  if (!stats || stats.tokens < 2) return undefined;
  if (stats.speed) return stats.speed;
  if (stats.generation < 50) return undefined;
  return ((stats.tokens - 1) * 1000) / stats.generation;
}
