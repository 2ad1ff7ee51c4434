/** Conversations as a JSON file and back. What is read is not trusted: every field is checked. */

import type { ToolCall } from "../api/chat";
import { type Attachment, type Conversation, type Message, newId, newestLeaf } from "./conversation";

export const FORMAT = "ktransformers-conversations";
export const VERSION = 1;
export const MAX_FILE = 64 * 1024 * 1024;

export function toFile(conversations: Conversation[], now = new Date()): string {
  const document = { format: FORMAT, version: VERSION, exported: now.toISOString(), conversations };
  return JSON.stringify(document, null, 1);
}

export class ImportError extends Error {
  constructor(readonly reason: "json" | "format" | "version" | "empty") {
    super(reason);
  }
}

/**
 * The conversations of an exported file, under new ids so that an import never overwrites one.
 * Messages with a wrong shape or a missing parent are left out. Raises ImportError.
 */
export function fromFile(text: string): Conversation[] {
  let document: unknown;
  try {
    document = JSON.parse(text);
  } catch {
    throw new ImportError("json");
  }
  const root = record(document);
  if (root.format !== FORMAT || !Array.isArray(root.conversations)) throw new ImportError("format");
  if (root.version !== VERSION) throw new ImportError("version");
  const found = root.conversations.map(conversation).filter((one) => one !== null);
  if (!found.length) throw new ImportError("empty");
  return found;
}

function record(value: unknown): Record<string, unknown> {
  return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : {};
}

const text = (value: unknown): string => (typeof value === "string" ? value : "");
const optional = (value: unknown): string | undefined =>
  typeof value === "string" ? value : undefined;
const time = (value: unknown): number =>
  typeof value === "number" && Number.isFinite(value) && value >= 0 ? value : 0;

function conversation(value: unknown): Conversation | null {
  const from = record(value);
  const messages: Record<string, Message> = {};
  for (const [id, raw] of Object.entries(record(from.messages))) {
    const made = message(id, raw);
    if (made) messages[id] = made;
  }
  const rooted = keepRooted(messages);
  const ids = Object.keys(rooted);
  if (!ids.length) return null;
  const made: Conversation = {
    id: newId(),
    title: text(from.title).slice(0, 200),
    createdAt: time(from.createdAt),
    updatedAt: time(from.updatedAt),
    head: null,
    messages: rooted,
  };
  const head = text(from.head);
  const root = Object.values(rooted).find((one) => one.parent === null)!;
  return { ...made, head: head in rooted ? head : newestLeaf(made, root.id) };
}

function message(id: string, value: unknown): Message | null {
  const from = record(value);
  if (!/^[0-9a-z-]{1,64}$/i.test(id)) return null; // also keeps "__proto__" out
  const role = from.role;
  if (role !== "user" && role !== "assistant" && role !== "tool") return null;
  const made: Message = {
    id,
    parent: optional(from.parent) ?? null,
    role,
    content: text(from.content),
    createdAt: time(from.createdAt),
  };
  if (from.reasoning) made.reasoning = text(from.reasoning);
  if (from.toolCallId) made.toolCallId = text(from.toolCallId);
  if (from.model) made.model = text(from.model);
  if (from.finish) made.finish = text(from.finish);
  if (Array.isArray(from.toolCalls)) made.toolCalls = from.toolCalls.map(toolCall);
  if (Array.isArray(from.attachments)) made.attachments = from.attachments.map(attachment);
  return made;
}

function toolCall(value: unknown): ToolCall {
  const from = record(value);
  return { id: text(from.id), name: text(from.name), arguments: text(from.arguments) };
}

function attachment(value: unknown): Attachment {
  const from = record(value);
  return { name: text(from.name), text: text(from.text) };
}

/** Messages whose chain of parents ends at a root; a missing parent or a ring drops them. */
function keepRooted(messages: Record<string, Message>): Record<string, Message> {
  const good = new Set<string>();
  for (const start of Object.keys(messages)) {
    const chain: string[] = [];
    const seen = new Set<string>();
    let at: string | null = start;
    while (at !== null && !good.has(at) && messages[at] && !seen.has(at)) {
      seen.add(at);
      chain.push(at);
      at = messages[at]!.parent;
    }
    if (at === null || good.has(at)) for (const id of chain) good.add(id);
  }
  return Object.fromEntries(Object.entries(messages).filter(([id]) => good.has(id)));
}
