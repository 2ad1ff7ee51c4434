/** A branch of a conversation as the messages of a request. */

import type { WireMessage } from "../api/chat";
import type { Message } from "./conversation";

/** A user's text with its files before it, each fenced by a line the model can tell from the text. */
export function userContent(message: Pick<Message, "content" | "attachments">): string {
  const files = (message.attachments ?? []).map(({ name, text }) => {
    const fence = longerFence(text);
    return `${name}:\n${fence}\n${text.replace(/\n$/, "")}\n${fence}`;
  });
  return [...files, message.content].filter(Boolean).join("\n\n");
}

/** A fence of backticks longer than any run in the text. */
export function longerFence(text: string): string {
  const longest = Math.max(2, ...(text.match(/`+/g) ?? []).map((run) => run.length));
  return "`".repeat(longest + 1);
}

/**
 * Thinking is not sent back; an answer that failed before its first word is left out, as is an
 * answer whose tool calls were not all answered (a template would reject it).
 */
export function toWire(branch: Message[], system: string): WireMessage[] {
  const wire: WireMessage[] = system.trim() ? [{ role: "system", content: system }] : [];
  const answered = new Set(branch.map((message) => message.toolCallId).filter(Boolean));
  const dropped = new Set<string>();
  for (const message of branch) {
    if (message.role === "user") {
      wire.push({ role: "user", content: userContent(message) });
    } else if (message.role === "tool") {
      if (!dropped.has(message.toolCallId ?? "")) {
        wire.push({ role: "tool", content: message.content, tool_call_id: message.toolCallId });
      }
    } else {
      const calls = message.toolCalls ?? [];
      const complete = calls.every((one) => answered.has(one.id));
      if (!complete) for (const one of calls) dropped.add(one.id);
      if (calls.length && complete) {
        wire.push({
          role: "assistant",
          content: message.content || null,
          tool_calls: calls.map(({ id, name, arguments: text }) => ({
            id,
            type: "function",
            function: { name, arguments: text },
          })),
        });
      } else if (message.content) {
        wire.push({ role: "assistant", content: message.content });
      }
    }
  }
  return wire;
}
