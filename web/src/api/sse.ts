/**
 * Server-sent events as bytes arrive, cut anywhere: inside a line, inside a UTF-8 sequence,
 * between CR and LF. https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
 */

export interface ServerEvent {
  event: string;
  data: string;
}

/** A line longer than this is no event of ours; the stream is given up instead of growing on. */
const MAX_LINE = 16 * 1024 * 1024;

export class SseParser {
  private readonly decoder = new TextDecoder("utf-8");
  private rest = "";
  private data: string[] = [];
  private event = "";

  /** The events completed by these bytes. Throws RangeError when a line never ends. */
  push(bytes: Uint8Array): ServerEvent[] {
    return this.take(this.decoder.decode(bytes, { stream: true }));
  }

  /** What the end of the stream completes: an event needs its empty line, so usually nothing. */
  end(): ServerEvent[] {
    return this.take(this.decoder.decode() + "\n");
  }

  private take(text: string): ServerEvent[] {
    const found: ServerEvent[] = [];
    let buffer = this.rest + text;
    // A CR at the very end may be half of CRLF: it waits for the next bytes.
    let held = "";
    if (buffer.endsWith("\r")) {
      buffer = buffer.slice(0, -1);
      held = "\r";
    }
    const lines = buffer.split(/\r\n|\r|\n/);
    this.rest = lines.pop()! + held;
    if (this.rest.length > MAX_LINE) throw new RangeError("event line too long");
    for (const line of lines) this.line(line, found);
    return found;
  }

  private line(line: string, found: ServerEvent[]): void {
    if (line === "") {
      if (this.data.length) found.push({ event: this.event || "message", data: this.data.join("\n") });
      this.data = [];
      this.event = "";
      return;
    }
    const colon = line.indexOf(":");
    if (colon === 0) return; // a comment: the server's ping
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "data") this.data.push(value);
    else if (field === "event") this.event = value;
  }
}
