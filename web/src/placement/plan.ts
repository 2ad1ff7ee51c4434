/** The planner's table as the page shows it: components, a map of the layers, equal rows as one. */

export interface PlanRow {
  module: string;
  kind: string;
  operator: string;
  backend: string;
  device: string;
  rule: string;
  why: string;
  bytes: number;
  /** Types of the weights, as GGUF names them. */
  formats: string[];
  /** An earlier row on the same device holds these very weights. */
  shared: boolean;
}

export interface Placement {
  rules: string;
  notes: string[];
  rows: PlanRow[];
  deviceBytes: Record<string, number>;
  /** Bytes a device has in all, where the server knows it. */
  capacity: Record<string, number>;
  cache?: { bytes: number; perPosition: number; type: string };
  /** What computes: instruction set, threads, how activations are rounded. */
  machine: { isa: string; threads: number; activations: string };
}

export type Component =
  | "embedding" | "attention" | "router" | "routed" | "shared" | "dense" | "head" | "other";

export const LAYER_COMPONENTS: Component[] = ["attention", "router", "shared", "routed", "dense", "other"];

const LAYER = /\.layers\.(\d+)(?=\.|$)/;

/** Reads the server's answer; unknown fields are ignored, missing ones empty. */
export function readPlacement(answer: unknown): Placement {
  const plan = object(answer);
  const whole = object(plan.totals);
  const held = new Set<string>();
  const rows = (Array.isArray(plan.rows) ? plan.rows : []).map((row) => {
    const from = object(row);
    const tensors = Array.isArray(from.tensors) ? from.tensors : [];
    const weights = JSON.stringify([from.device, from.backend, tensors]);
    const shared = tensors.length > 0 && held.has(weights);
    held.add(weights);
    return {
      module: text(from.module),
      kind: text(from.kind),
      operator: text(from.operator),
      backend: text(from.backend),
      device: text(from.device) || "cpu",
      rule: shortRule(text(from.rule)),
      why: text(from.why),
      bytes: number(from.bytes),
      formats: (Array.isArray(from.formats) ? from.formats : []).map(String),
      shared,
    };
  });
  return {
    rules: text(plan.rules).split(/[\\/]/).at(-1) ?? "",
    notes: (Array.isArray(plan.notes) ? plan.notes : []).map(String),
    rows,
    deviceBytes: numbers(plan.device_bytes),
    capacity: numbers(plan.capacity_bytes),
    cache: number(whole.cache_bytes)
      ? {
          bytes: number(whole.cache_bytes),
          perPosition: number(whole.cache_bytes_per_position),
          type: text(whole.cache_type),
        }
      : undefined,
    machine: { isa: text(plan.isa), threads: number(plan.threads), activations: text(plan.activations) },
  };
}

const object = (value: unknown): Record<string, unknown> =>
  typeof value === "object" && value !== null ? (value as Record<string, unknown>) : {};
const text = (value: unknown): string => (typeof value === "string" ? value : "");
const number = (value: unknown): number =>
  typeof value === "number" && Number.isFinite(value) ? value : 0;
const numbers = (value: unknown): Record<string, number> =>
  Object.fromEntries(Object.entries(object(value)).map(([name, one]) => [name, number(one)]));

/** "/a/b/mixtral.yaml:28:3" -> "mixtral.yaml:28" */
export function shortRule(place: string): string {
  const name = place.split(/[\\/]/).at(-1) ?? "";
  return name.replace(/^(.*?\.ya?ml:\d+):\d+$/, "$1");
}

export function layerOf(module: string): number | null {
  const match = LAYER.exec(module);
  return match ? Number(match[1]) : null;
}

export function componentOf({ module, kind }: Pick<PlanRow, "module" | "kind">): Component {
  if (/(^|\.)lm_head$/.test(module)) return "head";
  if (kind === "embedding" || /embed_tokens$/.test(module)) return "embedding";
  if (/shared_expert/.test(module)) return "shared";
  if (kind === "moe.router" || /\.(mlp|block_sparse_moe)\.gate$/.test(module)) return "router";
  if (/\.experts(\.|$)/.test(module)) return "routed";
  if (/\.self_attn(\.|$)/.test(module)) return "attention";
  if (/\.mlp(\.|$)/.test(module)) return "dense";
  return "other";
}

/** What a device is, whatever its number: colours and words go by it. */
export function deviceClass(device: string): "cpu" | "gpu" | "disk" | "other" {
  if (/^(cuda|gpu|rocm|xpu|mps)/.test(device)) return "gpu";
  if (/^(disk|file|nvme)/.test(device)) return "disk";
  return /^(cpu|ram|node)/.test(device) ? "cpu" : "other";
}

export interface Line {
  pattern: string;
  layers: number[];
  row: PlanRow;
  bytes: number;
  formats: string[];
  component: Component;
}

/** Rows that hold weights; those that differ in nothing but the layer's number become one. */
export function lines(rows: PlanRow[]): Line[] {
  const found = new Map<string, Line>();
  for (const row of rows) {
    if (row.bytes === 0) continue;
    const layer = layerOf(row.module);
    const pattern = row.module.replace(LAYER, ".layers.*");
    const key = [pattern, row.operator, row.backend, row.device, row.rule].join("\n");
    const line = found.get(key);
    if (line && layer !== null) {
      line.layers.push(layer);
      line.bytes += row.bytes;
      line.formats = [...new Set([...line.formats, ...row.formats])];
    } else {
      const layers = layer === null ? [] : [layer];
      const { bytes, formats } = row;
      found.set(key, { pattern, layers, row, bytes, formats, component: componentOf(row) });
    }
  }
  return [...found.values()];
}

/** [0, 1, 2, 5] -> "0–2, 5" */
export function ranges(numbers: number[]): string {
  const runs: [number, number][] = [];
  for (const one of [...numbers].sort((a, b) => a - b)) {
    const last = runs.at(-1);
    if (last && one <= last[1] + 1) last[1] = one;
    else runs.push([one, one]);
  }
  return runs.map(([a, b]) => (a === b ? String(a) : `${a}–${b}`)).join(", ");
}

export interface Cell {
  device: string;
  bytes: number;
  why: string;
}

/** One row per component, one cell per layer: where most of that component's bytes are. */
export function layerMap(rows: PlanRow[]): { layers: number; map: Map<Component, (Cell | null)[]> } {
  const layers = 1 + Math.max(-1, ...rows.map((row) => layerOf(row.module) ?? -1));
  const sums = new Map<Component, Map<string, Cell>[]>();
  for (const row of rows) {
    const layer = layerOf(row.module);
    if (layer === null || row.bytes === 0) continue;
    const component = componentOf(row);
    if (!sums.has(component)) sums.set(component, Array.from({ length: layers }, () => new Map()));
    const cell = sums.get(component)![layer]!;
    const old = cell.get(row.device);
    cell.set(row.device, {
      device: row.device,
      bytes: (old?.bytes ?? 0) + row.bytes,
      why: old && old.bytes >= row.bytes ? old.why : row.why,
    });
  }
  const map = new Map<Component, (Cell | null)[]>();
  for (const component of LAYER_COMPONENTS) {
    const cells = sums.get(component);
    if (!cells) continue;
    map.set(component, cells.map((cell) =>
      [...cell.values()].sort((a, b) => b.bytes - a.bytes)[0] ?? null));
  }
  return { layers, map };
}

/** Bytes per device and component, the largest device first. */
export function totals(rows: PlanRow[]): { device: string; bytes: number; parts: [Component, number][] }[] {
  const devices = new Map<string, Map<Component, number>>();
  for (const row of rows) {
    if (row.bytes === 0 || row.shared) continue;
    const parts = devices.get(row.device) ?? new Map<Component, number>();
    devices.set(row.device, parts);
    const component = componentOf(row);
    parts.set(component, (parts.get(component) ?? 0) + row.bytes);
  }
  return [...devices.entries()]
    .map(([device, parts]) => ({
      device,
      bytes: [...parts.values()].reduce((a, b) => a + b, 0),
      parts: [...parts.entries()].sort((a, b) => b[1] - a[1]),
    }))
    .sort((a, b) => b.bytes - a.bytes);
}

/** 1536 -> "1.5 KiB" */
export function sizeText(count: number): string {
  if (count < 1024) return `${count} B`;
  let size = count;
  for (const unit of ["KiB", "MiB", "GiB"]) {
    size /= 1024;
    if (size < 1024) return `${size.toFixed(size < 10 ? 1 : size < 100 ? 1 : 0)} ${unit}`;
  }
  return `${(size / 1024).toFixed(2)} TiB`;
}
