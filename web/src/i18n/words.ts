/** The words in the language chosen, and numbers as that language writes them. */

import { preferences } from "../state/preferences";
import { useStore } from "../state/store";
import { en, type Words } from "./en";
import { zh } from "./zh";

export const LANGUAGES = { en, zh };

export function useWords(): Words {
  return LANGUAGES[useStore(preferences, (chosen) => chosen.language)];
}

/** 12345 -> "12,345" */
export function count(value: number): string {
  return Math.round(value).toLocaleString("en-US");
}

/** 3 significant digits below 100, whole above. */
export function brief(value: number): string {
  if (value === 0) return "0";
  return value >= 100 ? Math.round(value).toString() : value >= 10 ? value.toFixed(1) : value.toFixed(2);
}
