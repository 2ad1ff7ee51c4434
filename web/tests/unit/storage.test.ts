import "fake-indexeddb/auto";
import { describe, expect, it, vi } from "vitest";
import * as chats from "../../src/state/chats";
import { append, type Conversation, newConversation, path } from "../../src/state/conversation";
import { type Archive, MemoryArchive, openArchive } from "../../src/state/db";
import { decode, FileError, MAX_BYTES, readText } from "../../src/state/files";
import { fromFile, toFile } from "../../src/state/transfer";

function sample(title: string, text = "hello"): Conversation {
  const made = { ...newConversation(10), title };
  return append(
    made,
    { id: "q", parent: null, role: "user", content: text, createdAt: 11, attachments: [{ name: "n", text: "t" }] },
    { id: "a", parent: "q", role: "assistant", content: "hi", createdAt: 12, reasoning: "r", toolCalls: [{ id: "1", name: "f", arguments: "{}" }] },
  );
}

describe.each([
  ["IndexedDB", () => openArchive("test")],
  ["memory", async () => new MemoryArchive() as Archive],
])("the archive in %s", (_, open) => {
  it("keeps, lists and removes", async () => {
    const archive = await open();
    const one = sample("one");
    const two = sample("two");
    await archive.put(one, two);
    expect((await archive.heads()).map((head) => head.title).sort()).toEqual(["one", "two"]);
    expect(await archive.get(one.id)).toEqual(one);
    await archive.remove(one.id);
    expect(await archive.all()).toEqual([two]);
    expect(await archive.get(one.id)).toBeUndefined();
    await archive.remove(two.id);
  });
});

it("falls back to memory where IndexedDB is forbidden", async () => {
  vi.stubGlobal("indexedDB", undefined);
  expect((await openArchive()).durable).toBe(false);
  vi.unstubAllGlobals();
});

describe("export and import", () => {
  it("gives back what it took, under new ids", () => {
    const one = sample("one");
    const [back] = fromFile(toFile([one]));
    expect(back).toEqual({ ...one, id: back!.id });
    expect(back!.id).not.toBe(one.id);
  });

  it.each([
    ["json", "{"],
    ["format", "[]"],
    ["format", '{"format":"other","conversations":[]}'],
    ["version", '{"format":"ktransformers-conversations","version":99,"conversations":[]}'],
    ["empty", '{"format":"ktransformers-conversations","version":1,"conversations":[null,{},{"messages":{"x":5}}]}'],
  ])("refuses a file: %s", (reason, text) => {
    expect(() => fromFile(text)).toThrow(reason);
  });

  it("drops what is not a message and whatever hangs in the air", () => {
    const hostile = {
      format: "ktransformers-conversations", version: 1,
      conversations: [{
        title: { toString: "x" }, head: "gone", updatedAt: "now",
        messages: {
          ok: { role: "user", content: "hi", parent: null, createdAt: 1 },
          child: { role: "assistant", content: 5, parent: "ok", toolCalls: [7], attachments: "no" },
          orphan: { role: "user", content: "x", parent: "missing" },
          ring1: { role: "user", parent: "ring2" }, ring2: { role: "user", parent: "ring1" },
          system: { role: "system", content: "evil", parent: null },
          ["__proto__"]: { role: "user", content: "polluted", parent: null },
        },
      }],
    };
    const text = JSON.stringify(hostile).replace('"system":{', '"__proto__":{"role":"user","parent":null},"system":{');
    const [made] = fromFile(text);
    expect(path(made!).map((one) => one.content)).toEqual(["hi", ""]);
    expect(Object.keys(made!.messages)).toEqual(["ok", "child"]);
    expect(made).toMatchObject({ title: "", updatedAt: 0 });
    expect(({} as Record<string, unknown>).role).toBeUndefined();
  });
});

describe("the list", () => {
  it("finds titles and texts, and follows import and removal", async () => {
    await chats.start();
    await chats.imported(toFile([sample("Weather", "rain in Lisbon"), sample("Bandwidth", "reading weights")]));
    const titles = () => chats.listed(chats.chats.get()).map((head) => head.title).sort();
    expect(titles()).toEqual(["Bandwidth", "Weather"]);
    await chats.search("LISBON");
    expect(titles()).toEqual(["Weather"]);
    await chats.search("band");
    expect(titles()).toEqual(["Bandwidth"]);
    await chats.search("");
    await chats.rename(chats.chats.get().heads.find((one) => one.title === "Weather")!.id, "  Rain ");
    expect(titles()).toEqual(["Bandwidth", "Rain"]);
    expect(fromFile(await chats.exported())).toHaveLength(2);
    await chats.remove(...chats.chats.get().heads.map((one) => one.id));
    expect(titles()).toEqual([]);
  });
});

describe("attached files", () => {
  const file = (data: BlobPart, name = "f.txt") => new File([data], name);

  it("are text, in UTF-8 or UTF-16", async () => {
    expect((await readText(file("héllo\r\nthere"), [])).text).toBe("héllo\nthere");
    expect(decode(new Uint8Array([0xff, 0xfe, 0x41, 0, 0x2d, 0x4e]), "")).toBe("A中");
  });

  it.each([
    ["big", file("x".repeat(MAX_BYTES + 1))],
    ["binary", file(new Uint8Array([0x89, 0x50, 0x4e, 0x47, 0, 0xff]))],
    ["binary", file("a\0b")],
  ])("are refused when %s", async (problem, one) => {
    await expect(readText(one, [])).rejects.toMatchObject({ problem });
  });

  it("fit together", async () => {
    const held = Array.from({ length: 4 }, () => ({ name: "x", text: "y".repeat(MAX_BYTES) }));
    await expect(readText(file("z"), held)).rejects.toBeInstanceOf(FileError);
  });
});
