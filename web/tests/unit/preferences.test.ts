import { describe, expect, it } from "vitest";
import { defaults, parseTools, requestOptions, revive, stopStrings } from "../../src/state/preferences";

describe("preferences", () => {
  it("follow the browser's language", () => {
    expect(defaults(["fr-FR", "zh-Hans-CN", "en"]).language).toBe("zh");
    expect(defaults(["fr", "en-GB", "zh"]).language).toBe("en");
    expect(defaults([]).language).toBe("en");
  });

  it("take only what fits out of storage", () => {
    const base = defaults([]);
    expect(revive(null, base)).toEqual(base);
    const made = revive({
      theme: "purple", key: 5, system: "be brief",
      sampling: { temperature: 0.7, top_p: 7, top_k: 1.5, seed: "1", max_tokens: Number.NaN, stop: "x" },
    }, base);
    expect(made).toEqual({ ...base, system: "be brief", sampling: { ...base.sampling, temperature: 0.7, stop: "x" } });
  });

  it("make request fields of what was chosen, and only of that", () => {
    const base = defaults([]);
    expect(requestOptions(base)).toEqual({});
    const tool = { type: "function", function: { name: "f" } };
    expect(requestOptions({
      ...base, thinking: "off", tools: JSON.stringify([tool]),
      sampling: { ...base.sampling, temperature: 0, seed: 3, stop: "END\n\n\\n\\n" },
    })).toEqual({
      temperature: 0, seed: 3, stop: ["END", "\n\n"], tools: [tool],
      chat_template_kwargs: { enable_thinking: false },
    });
  });

  it("read stop strings with their escapes", () => {
    expect(stopStrings("a\\tb\n\\\\n")).toEqual(["a\tb", "\\n"]);
  });

  it("tell what is wrong with tools", () => {
    expect(parseTools("{")).toEqual({ problem: "json" });
    expect(parseTools('[{"name":"f"}]')).toEqual({ problem: "shape" });
    expect(parseTools("null")).toEqual({ problem: "shape" });
    expect(parseTools(" ")).toEqual({ value: [] });
  });
});
