import { describe, expect, it } from "vitest";
import {
  append, type Conversation, type Message, newConversation, path, removeBranch, siblings,
  switchBranch, titleFrom,
} from "../../src/state/conversation";
import { longerFence, toWire } from "../../src/state/wire";

const message = (id: string, parent: string | null, role: Message["role"], at: number, rest: Partial<Message> = {}): Message =>
  ({ id, parent, role, content: id, createdAt: at, ...rest });

const ids = (conversation: Conversation) => path(conversation).map((one) => one.id).join(" ");

/** q1 - a1 - q2 - a2, a second answer a1b, and q2 edited into q2b with its own answer. */
function tree(): Conversation {
  let made = newConversation(0);
  made = append(made, message("q1", null, "user", 1), message("a1", "q1", "assistant", 2));
  made = append(made, message("q2", "a1", "user", 3), message("a2", "q2", "assistant", 4));
  made = append(made, message("q2b", "a1", "user", 5), message("a2b", "q2b", "assistant", 6));
  return append(made, message("a1b", "q1", "assistant", 7));
}

describe("a conversation", () => {
  it("shows one branch and goes to the newest leaf of another", () => {
    const made = tree();
    expect(ids(made)).toBe("q1 a1b");
    expect(siblings(made, "a1b").map((one) => one.id)).toEqual(["a1", "a1b"]);
    const back = switchBranch(made, "a1b", -1);
    expect(ids(back)).toBe("q1 a1 q2b a2b");
    expect(ids(switchBranch(back, "q2b", -1))).toBe("q1 a1 q2 a2");
    expect(switchBranch(back, "q2b", 1)).toBe(back);
  });

  it("removes a message with all that follows, and shows what is left", () => {
    const back = switchBranch(tree(), "a1b", -1);
    const without = removeBranch(back, "q2b");
    expect(Object.keys(without.messages).sort()).toEqual(["a1", "a1b", "a2", "q1", "q2"]);
    expect(ids(without)).toBe("q1 a1 q2 a2");
    expect(ids(removeBranch(without, "a1"))).toBe("q1 a1b");
    expect(path(removeBranch(without, "q1"))).toEqual([]);
  });

  it("survives a ring of parents", () => {
    const made = append(newConversation(0), message("a", "b", "user", 1), message("b", "a", "user", 2));
    expect(path(made)).toHaveLength(2);
  });

  it("is named after its first words", () => {
    expect(titleFrom("## Why is\nit slow?")).toBe("Why is");
    expect(titleFrom("word ".repeat(40))).toMatch(/^(word )+word…$/);
    expect(titleFrom("长".repeat(100))).toHaveLength(61);
  });
});

describe("toWire", () => {
  it("sends files fenced, no thinking, no failed answers", () => {
    const branch = [
      message("q", null, "user", 1, { attachments: [{ name: "a.md", text: "x\n```\ny\n```\n" }] }),
      message("failed", "q", "assistant", 2, { content: "", error: { kind: "network", message: "" } }),
      message("a", "q", "assistant", 3, { reasoning: "secret" }),
    ];
    expect(toWire(branch, "be brief")).toEqual([
      { role: "system", content: "be brief" },
      { role: "user", content: "a.md:\n````\nx\n```\ny\n```\n````\n\nq" },
      { role: "assistant", content: "a" },
    ]);
    expect(longerFence("no ticks")).toBe("```");
  });

  it("sends tool calls with their results, or neither", () => {
    const call = { id: "c1", name: "f", arguments: "{}" };
    const asked = message("a", null, "assistant", 1, { content: "", toolCalls: [call] });
    const told = message("t", "a", "tool", 2, { toolCallId: "c1" });
    expect(toWire([asked, told], "")).toEqual([
      { role: "assistant", content: null, tool_calls: [{ id: "c1", type: "function", function: { name: "f", arguments: "{}" } }] },
      { role: "tool", content: "t", tool_call_id: "c1" },
    ]);
    expect(toWire([asked, message("q", "a", "user", 3)], "")).toEqual([{ role: "user", content: "q" }]);
    const both = { ...asked, toolCalls: [call, { ...call, id: "c2" }] };
    expect(toWire([both, told], "")).toEqual([]);
  });
});
