/** What the page knows of the server: whether it answers, its model, its placement, its queue. */

import { call, getJson, useKey } from "../api/client";
import { ApiError, type ErrorInfo } from "../api/errors";
import { figure, parseMetrics, type Sample } from "../api/metrics";
import { type Placement, readPlacement } from "../placement/plan";
import { preferences } from "./preferences";
import { createStore } from "./store";

export interface Load {
  running?: number;
  waiting?: number;
  /** Tokens generated and prompt tokens evaluated, a second, since the last look. */
  generated?: number;
  prompted?: number;
  /** Share of the KV cache's blocks in use, 0 to 1. */
  cache?: number;
  /** Prompt tokens taken from the prefix cache, since the start. */
  cached?: number;
  requests?: number;
  generations: Generation[];
}

/** One answer in the making, anybody's, without its words. */
export interface Generation {
  id: string;
  state: string;
  prompt: number;
  promptLeft: number;
  cached: number;
  generated: number;
  speed?: number;
  seconds: number;
}

export interface Server {
  state: "asking" | "up" | "down" | "key";
  problem?: ErrorInfo;
  models: string[];
  context?: number;
  properties: Record<string, unknown>;
  placement?: Placement;
  placementProblem?: ErrorInfo;
  load: Load;
}

export const server = createStore<Server>({
  state: "asking", models: [], properties: {}, load: { generations: [] },
});

/** Asks for models and properties; called at the start, after a key, and while the server is down. */
export async function connect(): Promise<void> {
  useKey(preferences.get().key);
  try {
    const list = await getJson<{ data?: { id?: unknown }[] }>("/v1/models");
    const models = (list.data ?? []).map((one) => String(one.id ?? "")).filter(Boolean);
    const properties = await getJson<Record<string, unknown>>("/props").catch(() => ({}));
    const context = contextOf(properties);
    server.set({ state: "up", problem: undefined, models, properties, context });
    if (!server.get().placement) void loadPlacement();
  } catch (error) {
    const problem = error instanceof ApiError ? error.info : undefined;
    if (problem?.kind === "unauthorized") server.set({ state: "key", problem });
    else server.set({ state: "down", problem });
  }
}

/** Positions a conversation may have. */
export function contextOf(properties: Record<string, unknown>): number | undefined {
  const { context } = properties;
  return typeof context === "number" && context > 0 ? context : undefined;
}

export async function loadPlacement(): Promise<void> {
  try {
    const placement = readPlacement(await getJson<unknown>("/placement"));
    server.set({ placement, placementProblem: undefined });
  } catch (error) {
    if (error instanceof ApiError) server.set({ placementProblem: error.info });
  }
}

let last: { at: number; generated?: number; prompted?: number } | undefined;

/** What the model samples with where a request is silent; undefined where it is not told. */
export function defaultSampling(properties: Record<string, unknown>, name: string): number | undefined {
  const from = properties.default_sampling as Record<string, unknown> | null | undefined;
  const called = name === "repetition_penalty" ? "repeat_penalty" : name; // as the engine names it
  const value = name === "max_tokens" ? properties.max_new_tokens : from?.[called];
  return typeof value === "number" ? value : undefined;
}

/** Whether the model's template can be told to think or not; true where the server is silent. */
export function canSwitchThinking(properties: Record<string, unknown>): boolean {
  const supports = properties.supports as Record<string, unknown> | null | undefined;
  return supports?.thinking_switch !== false;
}

/** One look at the queue; speeds are differences between two looks at the counters. */
export async function lookAtLoad(): Promise<void> {
  try {
    const [text, properties] = await Promise.all([
      call("/metrics").then((answer) => answer.text()),
      getJson<Record<string, unknown>>("/props"),
    ]);
    const now = performance.now();
    const { load, counters } = readLoad(parseMetrics(text));
    load.generations = readGenerations(properties.live);
    if (last) {
      const seconds = (now - last.at) / 1000;
      load.generated = rate(last.generated, counters.generated, seconds);
      load.prompted = rate(last.prompted, counters.prompted, seconds);
    }
    last = { at: now, ...counters };
    server.set({ load });
    if (server.get().state === "down") void connect();
  } catch (error) {
    if (error instanceof ApiError && error.info.kind === "network") {
      server.set({ state: "down", problem: error.info });
    }
  }
}

function rate(before: number | undefined, after: number | undefined, seconds: number) {
  if (before === undefined || after === undefined || after < before || seconds <= 0) return undefined;
  return (after - before) / seconds;
}

/** The figures by the names the server gives them. */
export function readLoad(samples: Sample[]): {
  load: Load;
  counters: { generated?: number; prompted?: number };
} {
  const of = (name: string) => figure(samples, `ktransformers_${name}`);
  const used = of("cache_pages_used");
  const total = of("cache_pages");
  return {
    load: {
      running: of("requests_running"),
      waiting: of("requests_waiting"),
      cache: used !== undefined && total ? used / total : undefined,
      cached: of("prompt_tokens_cached_total"),
      requests: of("requests_total"),
      generations: [],
    },
    counters: {
      generated: of("generated_tokens_total"),
      prompted: of("prompt_tokens_evaluated_total"),
    },
  };
}

/** The list of /props' `live`; rows of another shape are left out. */
export function readGenerations(live: unknown): Generation[] {
  const list = (live as { generations?: unknown } | null | undefined)?.generations;
  if (!Array.isArray(list)) return [];
  return list.filter((row) => typeof row === "object" && row !== null).map((row) => {
    const from = row as Record<string, unknown>;
    const number = (name: string) => (typeof from[name] === "number" ? from[name] : 0);
    return {
      id: String(from.id ?? ""),
      state: String(from.state ?? ""),
      prompt: number("prompt_tokens"),
      promptLeft: number("prompt_left"),
      cached: number("cached_tokens"),
      generated: number("generated_tokens"),
      speed: typeof from.tokens_per_second === "number" ? from.tokens_per_second : undefined,
      seconds: number("seconds"),
    };
  });
}

/** How many tokens a text is; undefined when the server does not say. */
export async function countTokens(content: string, signal: AbortSignal): Promise<number | undefined> {
  try {
    const response = await call("/tokenize", { method: "POST", body: { content }, signal });
    const { tokens } = (await response.json()) as { tokens?: unknown[] };
    return tokens?.length;
  } catch {
    return undefined;
  }
}


/** Keeps an eye on the server: every two seconds where its figures are shown, else rarely. */
export function watch(every: number, look: () => Promise<void>): () => void {
  let stopped = false;
  let timer: ReturnType<typeof setTimeout> | undefined;
  const round = async () => {
    if (document.visibilityState === "visible") await look();
    if (!stopped) timer = setTimeout(round, every);
  };
  void round();
  return () => {
    stopped = true;
    clearTimeout(timer);
  };
}
