/** Keys that work anywhere on the page. The list in the help dialog is made from this one. */

import type { Words } from "../i18n/en";
import * as answers from "../state/answers";
import { chats } from "../state/chats";
import { focusComposer, go, isNarrow, layout } from "./layout";

interface Shortcut {
  name: keyof Words["shortcut"];
  keys: string[];
  match: (event: KeyboardEvent) => boolean;
  act: () => void;
}

const command = (event: KeyboardEvent) => event.ctrlKey || event.metaKey;

export const SHORTCUTS: Shortcut[] = [
  {
    name: "newChat", keys: ["Ctrl", "Shift", "O"],
    match: (event) => command(event) && event.shiftKey && event.code === "KeyO",
    act: () => { go("#/"); focusComposer(); },
  },
  {
    name: "search", keys: ["Ctrl", "K"],
    match: (event) => command(event) && !event.shiftKey && event.code === "KeyK",
    act: () => {
      layout.set({ menu: isNarrow() });
      setTimeout(() => document.getElementById("search")?.focus(), 0);
    },
  },
  {
    name: "settings", keys: ["Ctrl", ","],
    match: (event) => command(event) && event.key === ",",
    act: () => layout.set(({ settings }) => ({ settings: !settings })),
  },
  {
    name: "placement", keys: ["Ctrl", "Shift", "L"],
    match: (event) => command(event) && event.shiftKey && event.code === "KeyL",
    act: () => go(location.hash === "#/placement" ? "#/" : "#/placement"),
  },
  {
    name: "message", keys: ["/"],
    match: (event) => event.key === "/" && !command(event) && !event.altKey && !isTyping(event),
    act: focusComposer,
  },
  {
    name: "stop", keys: ["Esc"],
    match: (event) => event.key === "Escape" && !document.querySelector("dialog[open]"),
    act: escape,
  },
  {
    name: "help", keys: ["?"],
    match: (event) => event.key === "?" && !command(event) && !isTyping(event),
    act: () => layout.set({ help: true }),
  },
];

/** Escape closes what lies on top; with nothing on top it stops the answer. */
function escape(): void {
  const { menu, settings } = layout.get();
  const { current } = chats.get();
  if (settings) layout.set({ settings: false });
  else if (menu && isNarrow()) layout.set({ menu: false });
  else if (current) answers.stop(current);
}

function isTyping(event: KeyboardEvent): boolean {
  const target = event.target as HTMLElement | null;
  return Boolean(target?.closest("input, textarea, select, [contenteditable]"));
}

export function listenForKeys(): () => void {
  const handle = (event: KeyboardEvent) => {
    if (event.defaultPrevented || event.isComposing) return;
    const found = SHORTCUTS.find((one) => one.match(event));
    if (!found) return;
    event.preventDefault();
    found.act();
  };
  document.addEventListener("keydown", handle);
  return () => document.removeEventListener("keydown", handle);
}
