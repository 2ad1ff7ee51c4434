/** The few figures the page shows out of Prometheus' text format. */

export interface Sample {
  name: string;
  labels: Record<string, string>;
  value: number;
}

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/** https://prometheus.io/docs/instrumenting/exposition_formats/ ; lines it cannot read are skipped. */
export function parseMetrics(text: string): Sample[] {
  const samples: Sample[] = [];
  for (const line of text.split("\n")) {
    if (line.startsWith("#")) continue;
    const match = LINE.exec(line);
    if (!match) continue;
    const value = Number(match[3]!.replace(/^([+-]?)Inf$/, "$1Infinity"));
    if (Number.isNaN(value)) continue;
    const labels = Object.fromEntries(
      [...(match[2] ?? "").matchAll(LABEL)].map((m) => [m[1]!, m[2]!.replace(/\\(.)/g, "$1")]),
    );
    samples.push({ name: match[1]!, labels, value });
  }
  return samples;
}

/** The sum over all labels; undefined when there is no sample of that name. */
export function figure(samples: Sample[], name: string): number | undefined {
  const found = samples.filter((sample) => sample.name === name);
  return found.length ? found.reduce((sum, sample) => sum + sample.value, 0) : undefined;
}
