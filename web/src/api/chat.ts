/** POST /v1/chat/completions with stream: true, as the changes it makes to an answer. */

import { call } from "./client";
import { ApiError, errorMessage, fromStatus } from "./errors";
import { SseParser } from "./sse";

export interface ToolCall {
  id: string;
  name: string;
  /** JSON as the model writes it; not valid before the call is complete. */
  arguments: string;
}

export interface WireMessage {
  role: "system" | "user" | "assistant" | "tool";
  content: string | null;
  tool_calls?: { id: string; type: "function"; function: { name: string; arguments: string } }[];
  tool_call_id?: string;
}

export interface ChatRequest {
  model?: string;
  messages: WireMessage[];
  [option: string]: unknown;
}

export interface Usage {
  prompt: number;
  completion: number;
  cached?: number;
}

/** The server's own measurement (return_speed). */
export interface Timings {
  /** Tokens a second, the first one left out. */
  speed?: number;
  promptSpeed?: number;
}

/** The answer so far. chunks: events that carried text, about one per token. */
export interface Answer {
  content: string;
  reasoning: string;
  toolCalls: ToolCall[];
  finish: string | null;
  model: string;
  chunks: number;
  usage?: Usage;
  timings?: Timings;
}

export function emptyAnswer(): Answer {
  return { content: "", reasoning: "", toolCalls: [], finish: null, model: "", chunks: 0 };
}

interface Delta {
  content?: string | null;
  reasoning_content?: string | null;
  reasoning?: string | null;
  tool_calls?: { index?: number; id?: string; function?: { name?: string; arguments?: string } }[];
}

interface Chunk {
  model?: string;
  choices?: { index?: number; delta?: Delta; finish_reason?: string | null }[];
  usage?: {
    prompt_tokens?: number;
    completion_tokens?: number;
    prompt_tokens_details?: { cached_tokens?: number } | null;
  } | null;
  timings?: { predicted_tokens_per_second?: number; prompt_tokens_per_second?: number } | null;
  error?: unknown;
}

/** The answer after one chunk. Raises ApiError when the chunk is an error. */
export function apply(answer: Answer, chunk: Chunk): Answer {
  if (chunk.error !== undefined) {
    const code = (chunk.error as { code?: unknown } | null)?.code;
    const status = typeof code === "number" ? code : 500;
    throw new ApiError({ ...fromStatus(status, chunk, null), ...namedMessage(chunk) });
  }
  const next = { ...answer, model: chunk.model || answer.model };
  if (chunk.usage) {
    next.usage = {
      prompt: chunk.usage.prompt_tokens ?? 0,
      completion: chunk.usage.completion_tokens ?? 0,
      cached: chunk.usage.prompt_tokens_details?.cached_tokens,
    };
  }
  if (chunk.timings) {
    next.timings = {
      speed: chunk.timings.predicted_tokens_per_second,
      promptSpeed: chunk.timings.prompt_tokens_per_second,
    };
  }
  const choice = chunk.choices?.find((one) => (one.index ?? 0) === 0);
  if (!choice) return next;
  const delta = choice.delta ?? {};
  const thought = delta.reasoning_content ?? delta.reasoning ?? "";
  const said = delta.content ?? "";
  next.reasoning += thought;
  next.content += said;
  if (delta.tool_calls?.length) next.toolCalls = mergeCalls(next.toolCalls, delta.tool_calls);
  if (thought || said || delta.tool_calls?.length) next.chunks += 1;
  if (choice.finish_reason) next.finish = choice.finish_reason;
  return next;
}

function namedMessage(chunk: Chunk): { message?: string } {
  const { message } = errorMessage(chunk);
  return message ? { message } : {};
}

function mergeCalls(calls: ToolCall[], deltas: NonNullable<Delta["tool_calls"]>): ToolCall[] {
  const next = [...calls];
  for (const delta of deltas) {
    const at = delta.index ?? Math.max(0, next.length - 1);
    while (next.length <= at) next.push({ id: "", name: "", arguments: "" });
    const old = next[at]!;
    next[at] = {
      id: delta.id || old.id,
      name: old.name + (delta.function?.name ?? ""),
      arguments: old.arguments + (delta.function?.arguments ?? ""),
    };
  }
  return next;
}

/**
 * Sends the request and calls `changed` after every read that changed the answer.
 * Raises ApiError; an abort through `signal` raises its DOMException.
 */
export async function streamChat(
  request: ChatRequest,
  signal: AbortSignal,
  changed: (answer: Answer) => void,
): Promise<Answer> {
  const options = { stream: true, stream_options: { include_usage: true }, return_speed: true };
  const body = { ...request, ...options };
  const response = await call("/v1/chat/completions", { method: "POST", body, signal });
  const reader = response.body!.getReader();
  const parser = new SseParser();
  let answer = emptyAnswer();
  let done = false;
  const take = (events: { data: string }[]) => {
    const before = answer;
    for (const { data } of events) {
      if (data === "[DONE]") done = true;
      else answer = apply(answer, parse(data));
    }
    if (answer !== before) changed(answer);
  };
  try {
    while (!done) {
      const read = await reader.read();
      if (read.done) {
        take(parser.end());
        break;
      }
      take(parser.push(read.value));
    }
  } catch (error) {
    if (signal.aborted || error instanceof ApiError) throw error;
    throw new ApiError({ kind: "cut", message: error instanceof Error ? error.message : "" });
  } finally {
    reader.cancel().catch(() => undefined);
  }
  if (!done && !answer.finish) throw new ApiError({ kind: "cut", message: "" });
  return answer;
}

function parse(data: string): Chunk {
  try {
    return JSON.parse(data) as Chunk;
  } catch {
    throw new ApiError({ kind: "server", message: "the server sent an event that is no JSON" });
  }
}
