/**
 * Conversations in IndexedDB: `heads` (what the list shows) and `threads` (the messages), written
 * in one transaction. Where the browser forbids IndexedDB everything lives in memory.
 */

import type { Conversation } from "./conversation";

export type Head = Pick<Conversation, "id" | "title" | "createdAt" | "updatedAt">;

export interface Archive {
  /** False: nothing outlives the page. */
  readonly durable: boolean;
  heads(): Promise<Head[]>;
  get(id: string): Promise<Conversation | undefined>;
  all(): Promise<Conversation[]>;
  put(...conversations: Conversation[]): Promise<void>;
  remove(...ids: string[]): Promise<void>;
}

export function headOf({ id, title, createdAt, updatedAt }: Conversation): Head {
  return { id, title, createdAt, updatedAt };
}

export async function openArchive(name = "ktransformers"): Promise<Archive> {
  try {
    return new IndexedArchive(await openDatabase(name));
  } catch {
    return new MemoryArchive();
  }
}

function openDatabase(name: string): Promise<IDBDatabase> {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(name, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("heads", { keyPath: "id" });
      request.result.createObjectStore("threads", { keyPath: "id" });
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("blocked"));
  });
}

function result<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

class IndexedArchive implements Archive {
  readonly durable = true;

  constructor(private readonly db: IDBDatabase) {
    // Another tab with a newer version of the page: let it upgrade.
    db.onversionchange = () => db.close();
  }

  private read(store: "heads" | "threads"): IDBObjectStore {
    return this.db.transaction(store, "readonly").objectStore(store);
  }

  heads(): Promise<Head[]> {
    return result(this.read("heads").getAll() as IDBRequest<Head[]>);
  }

  get(id: string): Promise<Conversation | undefined> {
    return result(this.read("threads").get(id) as IDBRequest<Conversation | undefined>);
  }

  all(): Promise<Conversation[]> {
    return result(this.read("threads").getAll() as IDBRequest<Conversation[]>);
  }

  put(...conversations: Conversation[]): Promise<void> {
    return this.write((heads, threads) => {
      for (const conversation of conversations) {
        heads.put(headOf(conversation));
        threads.put(conversation);
      }
    });
  }

  remove(...ids: string[]): Promise<void> {
    return this.write((heads, threads) => {
      for (const id of ids) {
        heads.delete(id);
        threads.delete(id);
      }
    });
  }

  private write(work: (heads: IDBObjectStore, threads: IDBObjectStore) => void): Promise<void> {
    return new Promise((resolve, reject) => {
      const transaction = this.db.transaction(["heads", "threads"], "readwrite");
      transaction.oncomplete = () => resolve();
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
      work(transaction.objectStore("heads"), transaction.objectStore("threads"));
    });
  }
}

export class MemoryArchive implements Archive {
  readonly durable = false;
  private readonly kept = new Map<string, Conversation>();

  async heads(): Promise<Head[]> {
    return [...this.kept.values()].map(headOf);
  }
  async get(id: string): Promise<Conversation | undefined> {
    return this.kept.get(id);
  }
  async all(): Promise<Conversation[]> {
    return [...this.kept.values()];
  }
  async put(...conversations: Conversation[]): Promise<void> {
    for (const conversation of conversations) this.kept.set(conversation.id, conversation);
  }
  async remove(...ids: string[]): Promise<void> {
    for (const id of ids) this.kept.delete(id);
  }
}
