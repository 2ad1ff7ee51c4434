// A server without a model: the routes and shapes the page uses, with scripted answers. The browser
// tests run against it; `npm run mock` starts it for work on the page (KT_SERVER=... npm run dev).
import { createServer } from "node:http";
import { readFileSync } from "node:fs";
import { dirname, extname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { deltasFor } from "./answers.mjs";
import { placement } from "./placement.mjs";

const STATIC = join(dirname(fileURLToPath(import.meta.url)), "../../ktransformers/server/static");
const TYPES = {
  ".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css",
  ".svg": "image/svg+xml", ".woff2": "font/woff2", ".json": "application/json",
};
const POLICY =
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; " +
  "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; " +
  "require-trusted-types-for 'script'; trusted-types 'none'";

/** options: key, an API key to ask for; model, its name; context, in tokens. */
export function startMock({ port = 0, key = "", model = "DeepSeek-V3-0324-Q4_K_M", context = 32768 } = {}) {
  const state = { requests: [], aborted: 0, running: 0, generated: 0, prompted: 0, busy: 0, down: false };

  const server = createServer(async (request, response) => {
    const path = new URL(request.url, "http://x").pathname;
    if (state.down) return request.socket.destroy();
    if (request.method === "GET" && isPage(path)) return page(path, response);
    if (key && path !== "/health" && request.headers.authorization !== `Bearer ${key}`) {
      return fail(response, 401, "a valid API key is needed", "invalid_api_key");
    }
    const body = request.method === "POST" ? JSON.parse((await read(request)) || "{}") : undefined;
    switch (path) {
      case "/health": return json(response, { status: "ok" });
      case "/v1/models": return json(response, { object: "list", data: [{ id: model, object: "model" }] });
      case "/props": return json(response, properties(model, context, state));
      case "/placement": return json(response, placement());
      case "/tokenize": return json(response, { tokens: Array.from({ length: Math.ceil(body.content.length / 4) }, (_, i) => i) });
      case "/metrics": return metrics(response, state);
      case "/v1/chat/completions": return chat(request, response, body, state, { model, context });
      default: return fail(response, 404, "no such route");
    }
  });
  return new Promise((resolve) => server.listen(port, "127.0.0.1", () => resolve({
    url: `http://127.0.0.1:${server.address().port}/`,
    state,
    close: () => new Promise((done) => { server.closeAllConnections(); server.close(done); }),
  })));
}

const isPage = (path) => path === "/" || /^\/(assets\/[\w.-]+|boot\.js|icon\.svg|index\.html)$/.test(path);

function page(path, response) {
  const name = path === "/" ? "index.html" : path.slice(1);
  try {
    const data = readFileSync(join(STATIC, name));
    response.writeHead(200, { "Content-Type": TYPES[extname(name)], "Content-Security-Policy": POLICY });
    response.end(data);
  } catch {
    fail(response, 404, "no such file");
  }
}

async function read(request) {
  const parts = [];
  for await (const part of request) parts.push(part);
  return Buffer.concat(parts).toString("utf8");
}

function json(response, value) {
  response.writeHead(200, { "Content-Type": "application/json" });
  response.end(JSON.stringify(value));
}

function fail(response, status, message, code = null, headers = {}) {
  response.writeHead(status, { "Content-Type": "application/json", ...headers });
  response.end(JSON.stringify({ error: { message, type: "error", param: null, code } }));
}

function metrics(response, state) {
  response.writeHead(200, { "Content-Type": "text/plain; version=0.0.4" });
  response.end([
    "# TYPE ktransformers_requests_running gauge",
    `ktransformers_requests_running ${state.running + 3}`,
    "ktransformers_requests_waiting 1",
    `ktransformers_generated_tokens_total ${state.generated + Math.round(performance.now() * 0.0412)}`,
    `ktransformers_prompt_tokens_evaluated_total ${state.prompted + Math.round(performance.now() * 0.187)}`,
    "ktransformers_cache_pages_used 141",
    "ktransformers_cache_pages 512",
    "ktransformers_prompt_tokens_cached_total 48210",
    `ktransformers_requests_total ${state.requests.length + 1208}`,
    "",
  ].join("\n"));
}

function properties(model, context, state) {
  const one = (id, more) => ({
    id, state: "answer", prompt_tokens: 1200, prompt_left: 0, cached_tokens: 0, generated_tokens: 310,
    tokens_per_second: 13.7, seconds: 31.2, ...more,
  });
  return {
    model, context, max_new_tokens: 4096, max_batch_size: 8,
    default_sampling: { temperature: 0.6, top_p: 0.95, top_k: 0, min_p: 0, repeat_penalty: 1 },
    supports: { tools: true, thinking: true, thinking_switch: true, grammar: true },
    live: {
      running: state.running + 3, waiting: 1,
      generations: [
        one(41), one(42, { prompt_tokens: 318, cached_tokens: 256, generated_tokens: 87, tokens_per_second: 13.9, seconds: 7.4 }),
        one(43, { state: "prompt", prompt_tokens: 8192, prompt_left: 5120, generated_tokens: 0, tokens_per_second: null, seconds: 12.9 }),
        one(44, { state: "waiting", prompt_tokens: 640, prompt_left: 640, generated_tokens: 0, tokens_per_second: null, seconds: 1.3 }),
      ],
    },
  };
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function chat(request, response, body, state, { model, context }) {
  state.requests.push(body);
  const last = body.messages.at(-1);
  const asked = String(last.content);
  if (asked.includes("be busy") && state.busy++ === 0) {
    return fail(response, 429, "16 requests wait already", "queue_full", { "Retry-After": "2" });
  }
  if (asked.includes("be too long")) {
    return fail(response, 400, `the prompt has 40000 tokens, the context ${context}`, "context_length_exceeded");
  }
  if (asked.includes("fail inside")) {
    response.writeHead(200, { "Content-Type": "text/event-stream" });
    response.write(`data: ${JSON.stringify(chunk(model, { role: "assistant", content: "So " }))}\n\n`);
    return response.end(`data: ${JSON.stringify({ error: { message: "a worker failed", type: "server_error", code: 500 } })}\n\n`);
  }
  response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-store" });
  state.running += 1;
  let gone = false;
  response.on("close", () => { gone = !response.writableFinished; });
  const { deltas, finish, delay } = deltasFor(body);
  const prompt = Math.ceil(JSON.stringify(body.messages).length / 4);
  let tokens = 0;
  response.write(": ping\n\n");
  response.write(`data: ${JSON.stringify(chunk(model, { role: "assistant" }))}\n\n`);
  for (const delta of deltas) {
    if (gone) break;
    await pause(delay);
    tokens += 1;
    state.generated += 1;
    response.write(`data: ${JSON.stringify(chunk(model, delta))}\n\n`);
  }
  state.running -= 1;
  state.prompted += prompt;
  if (gone) {
    state.aborted += 1;
    return;
  }
  response.write(`data: ${JSON.stringify(chunk(model, {}, finish))}\n\n`);
  response.write(`data: ${JSON.stringify({
    object: "chat.completion.chunk", model, choices: [],
    usage: { prompt_tokens: prompt, completion_tokens: tokens, total_tokens: prompt + tokens },
    ...(body.return_speed ? { timings: { predicted_tokens_per_second: 13.8, prompt_tokens_per_second: 187 } } : {}),
  })}\n\n`);
  response.end("data: [DONE]\n\n");
}

function chunk(model, delta, finish = null) {
  return { id: "chatcmpl-1", object: "chat.completion.chunk", model, choices: [{ index: 0, delta, finish_reason: finish }] };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { url } = await startMock({ port: Number(process.env.PORT ?? 10003), key: process.env.KEY ?? "" });
  console.log(url);
}
