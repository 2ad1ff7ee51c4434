/**
 * A conversation is a tree of messages: an edited question or a regenerated answer is a sibling of
 * the old one, and nothing is lost. `head` is the last message of the branch on show.
 * All functions are pure: they return a new conversation.
 */

import type { ToolCall } from "../api/chat";
import type { ErrorInfo } from "../api/errors";

export interface Attachment {
  name: string;
  text: string;
}

/** What an answer took. Times in milliseconds. */
export interface Stats {
  promptTokens?: number;
  cachedTokens?: number;
  tokens: number;
  /** Whether `tokens` was counted by the server; otherwise it is the number of events. */
  exact: boolean;
  firstToken?: number;
  /** From the first token to the last. */
  generation: number;
  thinking?: number;
  /** Tokens a second as the server measured them. */
  speed?: number;
}

export interface Message {
  id: string;
  parent: string | null;
  role: "user" | "assistant" | "tool";
  content: string;
  createdAt: number;
  reasoning?: string;
  toolCalls?: ToolCall[];
  /** Of a tool message: the call it answers. */
  toolCallId?: string;
  attachments?: Attachment[];
  model?: string;
  finish?: string;
  stats?: Stats;
  error?: ErrorInfo;
}

export interface Conversation {
  id: string;
  title: string;
  createdAt: number;
  updatedAt: number;
  head: string | null;
  messages: Record<string, Message>;
}

export function newId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
}

export function newConversation(now = Date.now()): Conversation {
  return { id: newId(), title: "", createdAt: now, updatedAt: now, head: null, messages: {} };
}

/** From the first message to `leaf` (default: the branch on show). */
export function path(conversation: Conversation, leaf = conversation.head): Message[] {
  const found: Message[] = [];
  const seen = new Set<string>();
  for (let id = leaf; id !== null && !seen.has(id); ) {
    const message: Message | undefined = conversation.messages[id];
    if (!message) break;
    seen.add(id);
    found.push(message);
    id = message.parent;
  }
  return found.reverse();
}

/** Messages with the same parent, oldest first; the message itself is one of them. */
export function siblings(conversation: Conversation, id: string): Message[] {
  const parent = conversation.messages[id]?.parent;
  return Object.values(conversation.messages)
    .filter((message) => message.parent === parent)
    .sort((a, b) => a.createdAt - b.createdAt || (a.id < b.id ? -1 : 1));
}

/** The newest message below `id`, following the newest child each time. */
export function newestLeaf(conversation: Conversation, id: string): string {
  const newest = new Map<string, Message>();
  for (const message of Object.values(conversation.messages)) {
    if (message.parent === null) continue;
    const old = newest.get(message.parent);
    if (!old || old.createdAt <= message.createdAt) newest.set(message.parent, message);
  }
  const seen = new Set<string>();
  let at = id;
  for (let next = newest.get(at); next && !seen.has(next.id); next = newest.get(at)) {
    seen.add(next.id);
    at = next.id;
  }
  return at;
}

/** Adds messages, the last of which becomes the head. */
export function append(conversation: Conversation, ...added: Message[]): Conversation {
  const messages = { ...conversation.messages };
  for (const message of added) messages[message.id] = message;
  return {
    ...conversation,
    messages,
    head: added.at(-1)?.id ?? conversation.head,
    updatedAt: Math.max(conversation.updatedAt, ...added.map((message) => message.createdAt)),
  };
}

export function patch(conversation: Conversation, id: string, change: Partial<Message>): Conversation {
  const old = conversation.messages[id];
  if (!old) return conversation;
  return { ...conversation, messages: { ...conversation.messages, [id]: { ...old, ...change } } };
}

/** Shows another branch: the sibling `step` places away, and what came of it last. */
export function switchBranch(conversation: Conversation, id: string, step: number): Conversation {
  const all = siblings(conversation, id);
  const target = all[all.findIndex((message) => message.id === id) + step];
  return target ? { ...conversation, head: newestLeaf(conversation, target.id) } : conversation;
}

/** Removes a message and everything below it; the head moves to a sibling's branch or the parent. */
export function removeBranch(conversation: Conversation, id: string): Conversation {
  const target = conversation.messages[id];
  if (!target) return conversation;
  const others = siblings(conversation, id).filter((message) => message.id !== id);
  const gone = new Set([id]);
  for (let grown = true; grown; ) {
    grown = false;
    for (const message of Object.values(conversation.messages)) {
      if (message.parent && gone.has(message.parent) && !gone.has(message.id)) {
        gone.add(message.id);
        grown = true;
      }
    }
  }
  const messages = Object.fromEntries(
    Object.entries(conversation.messages).filter(([key]) => !gone.has(key)),
  );
  const rest = { ...conversation, messages };
  const next = others.at(-1);
  const head = !conversation.head || gone.has(conversation.head)
    ? next ? newestLeaf(rest, next.id) : target.parent
    : conversation.head;
  return { ...rest, head };
}

/** The first words of a question, as a title. */
export function titleFrom(text: string): string {
  const line = text.trim().split("\n", 1)[0]!.replace(/\s+/g, " ").replace(/^[#>*\-\s]+/, "");
  if (line.length <= 60) return line;
  const cut = line.slice(0, 60);
  const space = cut.lastIndexOf(" ");
  return (space > 30 ? cut.slice(0, space) : cut) + "…";
}
