/** What the user chose, kept in localStorage: looks, key, sampling, system prompt, tools. */

import { createStore } from "./store";

export interface Sampling {
  temperature: number | null;
  top_p: number | null;
  top_k: number | null;
  min_p: number | null;
  repetition_penalty: number | null;
  presence_penalty: number | null;
  frequency_penalty: number | null;
  max_tokens: number | null;
  seed: number | null;
  /** One stop string a line; \n and \t are written as such. */
  stop: string;
}

export interface Preferences {
  theme: "system" | "light" | "dark";
  language: "en" | "zh";
  key: string;
  model: string;
  system: string;
  /** OpenAI tool definitions, a JSON array; "" for none. */
  tools: string;
  thinking: "default" | "on" | "off";
  sampling: Sampling;
}

export interface Range {
  min: number;
  max: number;
  step: number;
  whole?: boolean;
}

export const RANGES: Record<Exclude<keyof Sampling, "stop">, Range> = {
  temperature: { min: 0, max: 2, step: 0.05 },
  top_p: { min: 0.01, max: 1, step: 0.01 },
  top_k: { min: 0, max: 100_000, step: 1, whole: true },
  min_p: { min: 0, max: 1, step: 0.01 },
  repetition_penalty: { min: 0.01, max: 100, step: 0.05 },
  presence_penalty: { min: -2, max: 2, step: 0.1 },
  frequency_penalty: { min: -2, max: 2, step: 0.1 },
  max_tokens: { min: 1, max: 1_048_576, step: 1, whole: true },
  seed: { min: 0, max: 2 ** 31 - 1, step: 1, whole: true },
};

/** null everywhere: the server's own defaults, which are the model's. */
export const DEFAULT_SAMPLING: Sampling = {
  temperature: null, top_p: null, top_k: null, min_p: null, repetition_penalty: null,
  presence_penalty: null, frequency_penalty: null, max_tokens: null, seed: null, stop: "",
};

const KEY = "kt.preferences";

export function defaults(languages: readonly string[]): Preferences {
  const first = languages.find((tag) => /^(zh|en)\b/i.test(tag)) ?? "en";
  return {
    theme: "system",
    language: /^zh/i.test(first) ? "zh" : "en",
    key: "",
    model: "",
    system: "",
    tools: "",
    thinking: "default",
    sampling: DEFAULT_SAMPLING,
  };
}

/** What was kept, field by field: a wrong type or a value out of range gives the default. */
export function revive(kept: unknown, base: Preferences): Preferences {
  if (typeof kept !== "object" || kept === null) return base;
  const from = kept as Record<string, unknown>;
  const one = <T extends string>(value: unknown, options: readonly T[], otherwise: T): T =>
    options.includes(value as T) ? (value as T) : otherwise;
  const text = (value: unknown, otherwise: string) => (typeof value === "string" ? value : otherwise);
  return {
    theme: one(from.theme, ["system", "light", "dark"], base.theme),
    language: one(from.language, ["en", "zh"], base.language),
    key: text(from.key, base.key),
    model: text(from.model, base.model),
    system: text(from.system, base.system),
    tools: text(from.tools, base.tools),
    thinking: one(from.thinking, ["default", "on", "off"], base.thinking),
    sampling: reviveSampling(from.sampling),
  };
}

function reviveSampling(kept: unknown): Sampling {
  const from = (typeof kept === "object" && kept !== null ? kept : {}) as Record<string, unknown>;
  const sampling: Sampling = { ...DEFAULT_SAMPLING };
  for (const [name, range] of Object.entries(RANGES)) {
    sampling[name as keyof typeof RANGES] = inRange(from[name], range);
  }
  if (typeof from.stop === "string") sampling.stop = from.stop;
  return sampling;
}

/** The number when it is one the server would take, else null. */
export function inRange(value: unknown, range: Range): number | null {
  if (typeof value !== "number" || !Number.isFinite(value)) return null;
  if (value < range.min || value > range.max) return null;
  return range.whole && !Number.isInteger(value) ? null : value;
}

/** The request fields a user's choice makes; what is unset is left to the server. */
export function requestOptions(chosen: Preferences): Record<string, unknown> {
  const options: Record<string, unknown> = {};
  for (const name of Object.keys(RANGES) as (keyof typeof RANGES)[]) {
    if (chosen.sampling[name] !== null) options[name] = chosen.sampling[name];
  }
  const stop = stopStrings(chosen.sampling.stop);
  if (stop.length) options.stop = stop;
  if (chosen.thinking !== "default") {
    options.chat_template_kwargs = { enable_thinking: chosen.thinking === "on" };
  }
  const tools = parseTools(chosen.tools);
  if (tools.value?.length) options.tools = tools.value;
  return options;
}

export function stopStrings(text: string): string[] {
  return text
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => line.replace(/\\(n|t|\\)/g, (_, c: string) => ({ n: "\n", t: "\t" })[c] ?? "\\"));
}

/** The tools a request carries, or why the text is none: "json" or "shape". */
export function parseTools(text: string): { value?: object[]; problem?: "json" | "shape" } {
  if (!text.trim()) return { value: [] };
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch {
    return { problem: "json" };
  }
  const fits = (tool: unknown) =>
    typeof (tool as { function?: { name?: unknown } } | null)?.function?.name === "string" &&
    (tool as { type?: unknown }).type === "function";
  return Array.isArray(parsed) && parsed.every(fits) ? { value: parsed } : { problem: "shape" };
}

function load(): Preferences {
  const base = defaults(typeof navigator === "undefined" ? [] : navigator.languages);
  try {
    return revive(JSON.parse(localStorage.getItem(KEY) ?? "null"), base);
  } catch {
    return base;
  }
}

export const preferences = createStore<Preferences>(load());

preferences.subscribe(() => {
  try {
    localStorage.setItem(KEY, JSON.stringify(preferences.get()));
  } catch {
    // No storage (private window, full disk): the choice holds until the page is closed.
  }
});
