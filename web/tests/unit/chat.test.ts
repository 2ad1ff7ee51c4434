import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { type Answer, apply, emptyAnswer, streamChat } from "../../src/api/chat";
import { ApiError, fromStatus, retryAt } from "../../src/api/errors";

const delta = (delta: object, finish: string | null = null) => ({ choices: [{ index: 0, delta, finish_reason: finish }] });

describe("apply", () => {
  it("joins thinking, text and two interleaved tool calls", () => {
    const chunks = [
      { model: "m", ...delta({ role: "assistant", content: "" }) },
      delta({ reasoning_content: "hm " }),
      delta({ reasoning_content: "yes" }),
      delta({ content: "I " }),
      delta({ content: "look" }),
      delta({ tool_calls: [{ index: 0, id: "a", function: { name: "f", arguments: "" } }] }),
      delta({ tool_calls: [{ index: 1, id: "b", function: { name: "g", arguments: "{" } }] }),
      delta({ tool_calls: [{ index: 0, function: { arguments: '{"x":' } }, { index: 1, function: { arguments: "}" } }] }),
      delta({ tool_calls: [{ index: 0, function: { arguments: "1}" } }] }),
      delta({}, "tool_calls"),
      { choices: [], usage: { prompt_tokens: 9, completion_tokens: 5, prompt_tokens_details: { cached_tokens: 4 } }, timings: { predicted_tokens_per_second: 12.5 } },
    ];
    const answer = chunks.reduce<Answer>(apply, emptyAnswer());
    expect(answer).toMatchObject({
      content: "I look", reasoning: "hm yes", finish: "tool_calls", model: "m",
      toolCalls: [{ id: "a", name: "f", arguments: '{"x":1}' }, { id: "b", name: "g", arguments: "{}" }],
      usage: { prompt: 9, completion: 5, cached: 4 }, timings: { speed: 12.5 }, chunks: 8,
    });
  });

  it("raises an error that comes inside the stream", () => {
    expect(() => apply(emptyAnswer(), { error: { message: "no memory", code: 503 } })).toThrow("no memory");
  });
});

describe("streamChat", () => {
  beforeEach(() => vi.stubGlobal("document", { baseURI: "http://localhost:1/prefix/" }));
  afterEach(() => vi.unstubAllGlobals());

  const answerWith = (parts: string[], init: ResponseInit = {}) => {
    const body = new ReadableStream({
      start(controller) {
        for (const part of parts) controller.enqueue(new TextEncoder().encode(part));
        controller.close();
      },
    });
    const fetched = vi.fn(async (_url: string, _options: RequestInit) => new Response(body, init));
    vi.stubGlobal("fetch", fetched);
    return fetched;
  };
  const event = (value: object) => `data: ${JSON.stringify(value)}\n\n`;
  const request = { model: "m", messages: [{ role: "user" as const, content: "hi" }], temperature: 0.5 };
  const run = () => streamChat(request, new AbortController().signal, () => undefined);

  it("asks beside the page, streamed, with usage", async () => {
    const fetched = answerWith([event(delta({ content: "a" })), event(delta({}, "stop")), "data: [DONE]\n\n"]);
    expect((await run()).content).toBe("a");
    const [url, options] = fetched.mock.calls[0]!;
    expect(url).toBe("http://localhost:1/prefix/v1/chat/completions");
    expect(JSON.parse(options.body as string)).toMatchObject({
      stream: true, stream_options: { include_usage: true }, temperature: 0.5,
    });
  });

  it("tells a stream that breaks off from one that ends", async () => {
    answerWith([event(delta({ content: "a" }))]);
    await expect(run()).rejects.toMatchObject({ info: { kind: "cut" } });
  });

  it.each([
    [401, {}, { kind: "unauthorized" }],
    [429, { error: { message: "later", type: "rate_limit_error" } }, { kind: "busy", message: "later" }],
    [400, { error: { message: "too long", code: "context_length_exceeded" } }, { kind: "context" }],
    [422, { detail: [{ loc: ["body", "top_p"], msg: "too big" }] }, { kind: "refused", message: "body.top_p: too big" }],
    [500, "oops", { kind: "server", message: "oops" }],
    [502, "<html>proxy</html>", { kind: "server", message: "HTTP 502" }],
  ])("names status %i", async (status, body, expected) => {
    answerWith([typeof body === "string" ? body : JSON.stringify(body)], { status, headers: { "Retry-After": "3" } });
    const error = await run().catch((caught: unknown) => caught);
    expect(error).toBeInstanceOf(ApiError);
    expect((error as ApiError).info).toMatchObject({ status, ...expected });
  });

  it("names a server that is not there", async () => {
    vi.stubGlobal("fetch", () => Promise.reject(new TypeError("Failed to fetch")));
    await expect(run()).rejects.toMatchObject({ info: { kind: "network" } });
  });
});

describe("Retry-After", () => {
  it("is seconds or a date", () => {
    expect(retryAt("3", 1000)).toBe(4000);
    expect(retryAt("Wed, 21 Oct 2026 07:28:00 GMT", 0)).toBe(Date.UTC(2026, 9, 21, 7, 28));
    expect(retryAt("soon", 0)).toBeUndefined();
    expect(fromStatus(503, {}, "2", 500).retryAt).toBe(2500);
  });
});
