import { describe, expect, it } from "vitest";
import { type ServerEvent, SseParser } from "../../src/api/sse";

const STREAM =
  ': ping\n\ndata: {"a":"é…漢😀"}\n\nevent: note\r\ndata: one\r\ndata:  two\r\n\r\nid: 7\ndata\rdata: x:y\r\r' +
  "event: dropped without data\n\ndata: [DONE]\n\ndata: cut off";

const EXPECTED: ServerEvent[] = [
  { event: "message", data: '{"a":"é…漢😀"}' },
  { event: "note", data: "one\n two" },
  { event: "message", data: "\nx:y" },
  { event: "message", data: "[DONE]" },
];

/** A small generator with a seed: the same splits on every run. */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

describe("SseParser", () => {
  const bytes = new TextEncoder().encode(STREAM);

  it("reads the same events however the bytes are cut", () => {
    const next = random(7);
    for (let round = 0; round < 300; round++) {
      const parser = new SseParser();
      const events: ServerEvent[] = [];
      for (let at = 0; at < bytes.length; ) {
        const size = 1 + Math.floor(next() * (round % 3 === 0 ? 3 : 40));
        events.push(...parser.push(bytes.subarray(at, at + size)));
        at += size;
      }
      events.push(...parser.end());
      expect(events).toEqual(EXPECTED);
    }
  });

  it("gives up on a line without end", () => {
    const parser = new SseParser();
    const piece = new TextEncoder().encode("x".repeat(1024 * 1024));
    expect(() => {
      for (let i = 0; i < 20; i++) parser.push(piece);
    }).toThrow(RangeError);
  });
});
