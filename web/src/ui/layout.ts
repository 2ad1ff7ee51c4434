/** What is open on the page, where it is, and how wide the window is. */

import { useSyncExternalStore } from "react";
import { createStore } from "../state/store";

export interface Layout {
  menu: boolean;
  settings: boolean;
  help: boolean;
  /** What is asked about before it is deleted: a conversation, or all from one of its messages on. */
  removing: { id: string; message?: string } | null;
  notice: string;
}

export const layout = createStore<Layout>({
  menu: false, settings: false, help: false, removing: null, notice: "",
});

const NARROW = "(max-width: 820px)";

/** One column, where list and settings lie over the conversation. */
export const isNarrow = () => matchMedia(NARROW).matches;

export function useNarrow(): boolean {
  return useSyncExternalStore(
    (listener) => {
      const query = matchMedia(NARROW);
      query.addEventListener("change", listener);
      return () => query.removeEventListener("change", listener);
    },
    isNarrow,
  );
}

export type Route = { view: "chat"; id: string | null } | { view: "placement" };

export function readRoute(hash: string): Route {
  if (hash === "#/placement") return { view: "placement" };
  const match = /^#\/c\/([0-9a-z-]{1,64})$/i.exec(hash);
  return { view: "chat", id: match ? match[1]! : null };
}

export function useRoute(): Route {
  const hash = useSyncExternalStore(
    (listener) => {
      addEventListener("hashchange", listener);
      return () => removeEventListener("hashchange", listener);
    },
    () => location.hash,
  );
  return readRoute(hash);
}

export function go(hash: string): void {
  if (location.hash !== hash) location.hash = hash;
}

export function focusComposer(): void {
  // After the view has changed.
  setTimeout(() => document.getElementById("composer")?.focus(), 0);
}

export function download(name: string, text: string): void {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
