/** One door to the server: address, key, errors. Same origin only. */

import { ApiError, asInfo, fromStatus } from "./errors";

let key = "";

/** Sent as a bearer token with every request from now on; "" sends none. */
export function useKey(value: string): void {
  key = value;
}

/** The server's address of a path: beside the page, wherever a proxy puts both. */
export function address(path: string): string {
  return new URL(path.replace(/^\//, ""), new URL(".", document.baseURI)).href;
}

export interface Call {
  method?: "GET" | "POST";
  body?: unknown;
  signal?: AbortSignal;
}

/** Raises ApiError for every answer that is not 2xx, and when there is none. */
export async function call(path: string, { method = "GET", body, signal }: Call = {}): Promise<Response> {
  const headers: Record<string, string> = {};
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response: Response;
  try {
    response = await fetch(address(path), {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      credentials: "same-origin",
      cache: "no-store",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError({ ...asInfo(error), kind: "network" });
  }
  if (response.ok) return response;
  throw new ApiError(
    fromStatus(response.status, await readBody(response), response.headers.get("Retry-After")),
  );
}

async function readBody(response: Response): Promise<unknown> {
  const text = await response.text().catch(() => "");
  try {
    return JSON.parse(text);
  } catch {
    return text.startsWith("<") ? "" : text;
  }
}

export async function getJson<T>(path: string, signal?: AbortSignal): Promise<T> {
  return (await (await call(path, { signal })).json()) as T;
}
