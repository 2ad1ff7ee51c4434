/** The conversations the page knows: the list, the one on show, and those being answered. */

import { type Conversation, newConversation } from "./conversation";
import { type Archive, type Head, headOf, openArchive } from "./db";
import { createStore } from "./store";
import { fromFile, toFile } from "./transfer";

export interface Chats {
  ready: boolean;
  durable: boolean;
  heads: Head[];
  /** Loaded conversations by id: the one on show and those with a running answer. */
  open: Record<string, Conversation>;
  current: string | null;
  query: string;
  /** Ids whose messages contain the query; null while there is none or the search runs. */
  found: Set<string> | null;
  saveFailed: boolean;
}

export const chats = createStore<Chats>({
  ready: false, durable: true, heads: [], open: {}, current: null, query: "", found: null,
  saveFailed: false,
});

/** Ids of the conversations this tab is writing an answer into. */
export const writing = new Set<string>();

let archive: Archive;
let channel: BroadcastChannel | undefined;

/** What one tab tells the others. */
interface Change {
  ids: string[];
  gone: boolean;
}

export async function start(): Promise<void> {
  archive = await openArchive();
  chats.set({ durable: archive.durable, heads: await sorted(), ready: true });
  if (typeof BroadcastChannel === "undefined" || !archive.durable) return;
  channel = new BroadcastChannel("kt.conversations");
  channel.onmessage = ({ data }: MessageEvent<Change>) => void follow(data);
}

/** Takes over what another tab stored, so that saving here does not undo it. */
async function follow({ ids, gone }: Change): Promise<void> {
  for (const id of ids.filter((one) => get(one))) {
    const stored = gone ? undefined : await archive.get(id);
    chats.set(({ open, current }) => {
      const { [id]: mine, ...rest } = open;
      if (!mine) return {};
      if (!stored) return { open: rest, current: current === id ? null : current };
      const messages = { ...stored.messages, ...mine.messages };
      return { open: { ...rest, [id]: writing.has(id) ? { ...mine, messages } : stored } };
    });
  }
  chats.set({ heads: await sorted() });
}

async function sorted(): Promise<Head[]> {
  return (await archive.heads()).sort((a, b) => b.updatedAt - a.updatedAt);
}

/** Opens a conversation; false when there is none of that id. */
export async function show(id: string | null): Promise<boolean> {
  if (id === null) {
    chats.set({ current: null });
    return true;
  }
  const known = chats.get().open[id] ?? (await archive.get(id));
  if (!known) return false;
  chats.set(({ open }) => ({ current: id, open: { ...open, [id]: known } }));
  return true;
}

/** The conversation on show, made when there is none yet. */
export function currentOrNew(): Conversation {
  const { current, open } = chats.get();
  const known = current ? open[current] : undefined;
  if (known) return known;
  const made = newConversation();
  chats.set({ current: made.id, open: { ...open, [made.id]: made } });
  return made;
}

export function get(id: string): Conversation | undefined {
  return chats.get().open[id];
}

/** Changes a conversation on the page at once; `save` writes it. */
export function change(id: string, how: (old: Conversation) => Conversation): void {
  chats.set(({ open, heads }) => {
    const old = open[id];
    if (!old) return {};
    const made = how(old);
    if (made === old) return {};
    const next = { open: { ...open, [id]: made } };
    const head = heads.find((one) => one.id === id);
    if (head && head.title === made.title && head.updatedAt === made.updatedAt) return next;
    const rest = heads.filter((one) => one.id !== id);
    const list = [headOf(made), ...rest].sort((a, b) => b.updatedAt - a.updatedAt);
    return { ...next, heads: list };
  });
}

export async function save(id: string): Promise<void> {
  const conversation = get(id);
  if (!conversation) return;
  await stored({ ids: [id], gone: false }, () => archive.put(conversation));
}

async function stored(change: Change, work: () => Promise<void>): Promise<void> {
  try {
    await work();
    chats.set({ saveFailed: false });
    channel?.postMessage(change);
  } catch {
    chats.set({ saveFailed: true });
  }
}

export async function rename(id: string, title: string): Promise<void> {
  await show1(id);
  change(id, (old) => ({ ...old, title: title.trim().slice(0, 200) }));
  await save(id);
}

/** Loads a conversation without showing it. */
async function show1(id: string): Promise<void> {
  if (get(id)) return;
  const known = await archive.get(id);
  if (known) chats.set(({ open }) => ({ open: { ...open, [id]: known } }));
}

export async function remove(...ids: string[]): Promise<void> {
  const gone = new Set(ids);
  chats.set(({ heads, open, current }) => ({
    heads: heads.filter((one) => !gone.has(one.id)),
    open: Object.fromEntries(Object.entries(open).filter(([id]) => !gone.has(id))),
    current: current && gone.has(current) ? null : current,
  }));
  await stored({ ids, gone: true }, () => archive.remove(...ids));
}

/** One conversation, or all of them, as the text of a file. */
export async function exported(id?: string): Promise<string> {
  if (id === undefined) return toFile(await archive.all());
  const one = get(id) ?? (await archive.get(id));
  return toFile(one ? [one] : []);
}

/** Adds the conversations of a file; returns how many. Raises ImportError. */
export async function imported(text: string): Promise<number> {
  const found = fromFile(text);
  const ids = found.map((one) => one.id);
  await stored({ ids, gone: false }, () => archive.put(...found));
  chats.set({ heads: await sorted() });
  return found.length;
}

let searching = 0;

/** Titles are matched at once by the list; this adds the conversations whose text matches. */
export async function search(query: string): Promise<void> {
  const mine = ++searching;
  chats.set({ query, found: null });
  const wanted = query.trim().toLocaleLowerCase();
  if (!wanted) return;
  await new Promise((resolve) => setTimeout(resolve, 120));
  if (mine !== searching) return;
  const all = await archive.all();
  if (mine !== searching) return;
  const found = new Set<string>();
  for (const conversation of all) {
    const texts = Object.values(conversation.messages).map((message) => message.content);
    if (texts.some((text) => text.toLocaleLowerCase().includes(wanted))) found.add(conversation.id);
  }
  chats.set({ found });
}

/** The list as the query leaves it. */
export function listed({ heads, query, found }: Chats): Head[] {
  const wanted = query.trim().toLocaleLowerCase();
  if (!wanted) return heads;
  return heads.filter((one) => one.title.toLocaleLowerCase().includes(wanted) || found?.has(one.id));
}
