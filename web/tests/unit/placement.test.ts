import { describe, expect, it } from "vitest";
// @ts-expect-error plain JavaScript without types
import { placement as mockPlacement } from "../../mock/placement.mjs";
import { figure, parseMetrics } from "../../src/api/metrics";
import { componentOf, layerMap, lines, ranges, readPlacement, shortRule, sizeText, totals } from "../../src/placement/plan";
import { readGenerations, readLoad } from "../../src/state/server";

describe("the plan", () => {
  const plan = readPlacement(mockPlacement());

  it("sums to what the server says per device", () => {
    for (const { device, bytes, parts } of totals(plan.rows)) {
      expect(bytes).toBe(plan.deviceBytes[device]);
      expect(parts.reduce((sum, [, one]) => sum + one, 0)).toBe(bytes);
    }
  });

  it("counts weights once that two modules share", () => {
    const row = { kind: "linear", operator: "linear", backend: "cpu", device: "cpu", tensors: ["token_embd.weight"], bytes: 64, formats: ["q4_1"] };
    const tied = readPlacement({ rows: [{ ...row, module: "model.embed_tokens" }, { ...row, module: "lm_head" }] });
    expect(totals(tied.rows)).toEqual([{ device: "cpu", bytes: 64, parts: [["embedding", 64]] }]);
    expect(lines(tied.rows).map(({ row, bytes }) => [row.module, row.shared, bytes])).toEqual([
      ["model.embed_tokens", false, 64], ["lm_head", true, 64],
    ]);
  });

  it("joins rows that differ only by layer", () => {
    const joined = lines(plan.rows);
    expect(joined.reduce((sum, line) => sum + line.bytes, 0)).toBe(plan.rows.reduce((sum, row) => sum + row.bytes, 0));
    const experts = joined.filter((line) => line.component === "routed");
    expect(experts.map((line) => [line.row.device, ranges(line.layers)])).toEqual([["cuda:0", "3–4"], ["cpu", "5–60"]]);
  });

  it("maps each layer's parts to devices", () => {
    const { layers, map } = layerMap(plan.rows);
    expect(layers).toBe(61);
    expect(map.get("routed")!.map((cell) => cell?.device ?? "-").slice(2, 6)).toEqual(["-", "cuda:0", "cuda:0", "cpu"]);
    expect(map.get("dense")!.filter(Boolean)).toHaveLength(3);
  });

  it("reads an answer of another shape as an empty plan", () => {
    for (const odd of [null, 5, [], { rows: "x" }, { rows: [null, 7] }]) {
      expect(totals(readPlacement(odd).rows)).toEqual([]);
    }
  });

  it("names parts by module and kind", () => {
    const of = (module: string, kind = "linear") => componentOf({ module, kind });
    expect(of("model.layers.3.mlp.experts", "moe.experts")).toBe("routed");
    expect(of("model.layers.3.mlp.shared_experts.gate_proj")).toBe("shared");
    expect(of("model.layers.3.mlp.gate", "moe.router")).toBe("router");
    expect(of("model.layers.3.self_attn.q_proj")).toBe("attention");
    expect(of("model.layers.3.mlp.gate_proj")).toBe("dense");
    expect(of("model.layers.3.input_layernorm", "norm.rms")).toBe("other");
    expect(of("lm_head")).toBe("head");
  });

  it("writes sizes, ranges and rules", () => {
    expect([0, 1023, 1536, 10.5 * 2 ** 20, 346 * 2 ** 30, 2 ** 41].map(sizeText)).toEqual(
      ["0 B", "1023 B", "1.5 KiB", "10.5 MiB", "346 GiB", "2.00 TiB"]);
    expect(ranges([5, 2, 0, 1])).toBe("0–2, 5");
    expect(shortRule("/a/b/mixtral.yaml:28:3")).toBe("mixtral.yaml:28");
  });
});

describe("figures", () => {
  it("are read out of Prometheus' format", () => {
    const text = '# HELP x y\nktransformers_requests_running 2\nktransformers_cache_pages 8\nktransformers_cache_pages_used 2\n' +
      'm{a="x\\"y",b="}"} 1e3 1700000000\nm{a="z"} 1\nbad line\ninf +Inf\n';
    const samples = parseMetrics(text);
    expect(samples.find((sample) => sample.name === "m")!.labels).toEqual({ a: 'x"y', b: "}" });
    expect(figure(samples, "m")).toBe(1001);
    expect(figure(samples, "inf")).toBe(Infinity);
    expect(readLoad(samples).load).toMatchObject({ running: 2, waiting: undefined, cache: 0.25 });
  });

  it("list the answers in the making", () => {
    expect(readGenerations({ generations: [{ id: 3, state: "answer", generated_tokens: 5, tokens_per_second: null }, null] }))
      .toMatchObject([{ id: "3", state: "answer", generated: 5, speed: undefined }]);
    expect(readGenerations(undefined)).toEqual([]);
  });
});
