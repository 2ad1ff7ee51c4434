// A plan as the planner prints it, of a DeepSeek-V3-sized model on one 24 GB GPU and main memory.

const MiB = 2 ** 20;
const RULES = "deepseek2.yaml";

export function placement() {
  const rows = [];
  const add = (module, kind, device, mib, line, why) => rows.push({
    module, kind, operator: kind, backend: device.split(":")[0], device, options: {},
    rule: `${RULES}:${line}:3`, why, bytes: Math.round(mib * MiB), parameters: [], tensors: [`${module}.weight`], subtree: false,
    formats: kind === "norm.rms" || kind === "moe.router" ? ["f32"] : module.endsWith("experts") ? ["q4_k", "q6_k"] : ["q4_k"],
  });
  add("model.embed_tokens", "embedding", "cpu", 994, 12, "unpacks only the rows of the tokens at hand");
  for (let layer = 0; layer < 61; layer++) {
    const at = `model.layers.${layer}`;
    add(`${at}.self_attn`, "attention.mla", "cuda:0", 105.5, 24, "read by every token and much computed on: first on the GPU");
    add(`${at}.input_layernorm`, "norm.rms", "cuda:0", 0.03, 20, "stands beside what it feeds");
    if (layer < 3) {
      add(`${at}.mlp`, "mlp", "cuda:0", 223, 30, "dense: read by every token");
      continue;
    }
    add(`${at}.mlp.gate`, "moe.router", "cuda:0", 7, 33, "a near tie must not be decided by rounding, so float32");
    add(`${at}.mlp.shared_experts`, "mlp", "cuda:0", 24.8, 36, "read by every token, as the attention is");
    if (layer < 5) {
      add(`${at}.mlp.experts`, "moe.experts", "cuda:0", 6304, 41, "what the GPU has left holds the experts of the first layers");
    } else {
      add(`${at}.mlp.experts`, "moe.experts", "cpu", 6304, 45, "most of the weights, and each token reads few of them: computed where they lie");
    }
  }
  add("model.norm", "norm.rms", "cuda:0", 0.03, 20, "stands beside what it feeds");
  add("lm_head", "linear", "cuda:0", 725, 48, "read once for every token");
  const device_bytes = {};
  for (const { device, bytes } of rows) device_bytes[device] = (device_bytes[device] ?? 0) + bytes;
  return {
    rules: "deepseek2.yaml", dialect: "own", device_bytes, rows,
    notes: ["cuda:0: 1.0 GiB kept free for the prompt's activations"],
    summary: `${rows.length} modules planned by deepseek2.yaml`,
    nodes: [],
    totals: {
      weights_bytes: device_bytes.cpu + device_bytes["cuda:0"],
      cache_bytes_per_position: 70272, cache_bytes: 70272 * 32768, cache_type: "f16+f16",
    },
    threads: 32, isa: "avx512bf16", activations: "default",
    capacity_bytes: { "cuda:0": 24 * 1024 * MiB, cpu: 512 * 1024 * MiB },
  };
}
