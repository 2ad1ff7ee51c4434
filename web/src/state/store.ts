/** A value with listeners, and the hook that re-renders when a part of it changes. */

import { useSyncExternalStore } from "react";

export interface Store<T> {
  get(): T;
  set(change: Partial<T> | ((old: T) => Partial<T>)): void;
  subscribe(listener: () => void): () => void;
}

export function createStore<T extends object>(initial: T): Store<T> {
  let value = initial;
  const listeners = new Set<() => void>();
  return {
    get: () => value,
    set(change) {
      const part = typeof change === "function" ? change(value) : change;
      if (Object.entries(part).every(([k, v]) => Object.is(value[k as keyof T], v))) return;
      value = { ...value, ...part };
      for (const listener of [...listeners]) listener();
    },
    subscribe(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
  };
}

/** `pick` must return the same reference while nothing it reads has changed. */
export function useStore<T extends object, R>(store: Store<T>, pick: (value: T) => R): R {
  return useSyncExternalStore(store.subscribe, () => pick(store.get()));
}
