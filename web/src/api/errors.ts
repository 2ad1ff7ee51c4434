/** What can go wrong between page and server, as the page tells it apart. */

export type ErrorKind =
  | "network" // no answer at all
  | "unauthorized" // 401: a key is wanted, or another one
  | "busy" // 429, 503: try again
  | "context" // the conversation no longer fits
  | "refused" // any other 4xx
  | "server" // 5xx, or an error inside the stream
  | "cut"; // the stream ended before the answer did

/** Plain data, so that it can be kept with the message it belongs to. */
export interface ErrorInfo {
  kind: ErrorKind;
  message: string;
  status?: number;
  /** Milliseconds since the epoch: when the server said to come back. */
  retryAt?: number;
}

export class ApiError extends Error {
  constructor(readonly info: ErrorInfo) {
    super(info.message);
    this.name = "ApiError";
  }
}

const CONTEXT = /context[ _-]?(length|window|size)|maximum context|exceeds? the (available )?context/i;

/** Seconds or an HTTP date, RFC 9110 10.2.3; undefined when it is neither. */
export function retryAt(header: string | null, now: number): number | undefined {
  if (!header) return undefined;
  if (/^\s*\d+(\.\d+)?\s*$/.test(header)) return now + Number(header) * 1000;
  const date = Date.parse(header);
  return Number.isNaN(date) ? undefined : date;
}

/** The message out of an OpenAI, FastAPI or plain error body. */
export function errorMessage(body: unknown): { message: string; code: string } {
  const none = { message: "", code: "" };
  if (typeof body === "string") return { message: body.slice(0, 500), code: "" };
  if (typeof body !== "object" || body === null) return none;
  const holder = body as Record<string, unknown>;
  const inner = holder.error ?? holder.detail ?? holder.message;
  if (typeof inner === "string") return { message: inner, code: String(holder.code ?? "") };
  if (Array.isArray(inner)) {
    const first = inner[0] as { msg?: unknown; loc?: unknown[] } | undefined;
    return { message: first ? `${(first.loc ?? []).join(".")}: ${String(first.msg)}` : "", code: "" };
  }
  if (typeof inner !== "object" || inner === null) return none;
  const error = inner as Record<string, unknown>;
  return {
    message: typeof error.message === "string" ? error.message : "",
    code: [error.code, error.type].filter((part) => typeof part === "string").join(" "),
  };
}

export function fromStatus(
  status: number,
  body: unknown,
  retryAfter: string | null,
  now = Date.now(),
): ErrorInfo {
  const { message, code } = errorMessage(body);
  const said = message || `HTTP ${status}`;
  if (status === 401) return { kind: "unauthorized", status, message: said };
  if (status === 429 || status === 503) {
    return { kind: "busy", status, message: said, retryAt: retryAt(retryAfter, now) };
  }
  if (status >= 400 && status < 500) {
    const full = /context_length|context_window/.test(code) || CONTEXT.test(message);
    return { kind: full ? "context" : "refused", status, message: said };
  }
  return { kind: "server", status, message: said };
}

/** Whatever was thrown, as ErrorInfo. */
export function asInfo(error: unknown): ErrorInfo {
  if (error instanceof ApiError) return error.info;
  return { kind: "network", message: error instanceof Error ? error.message : String(error) };
}
