/** Text files read in the browser; nothing is uploaded but the text itself, with the question. */

import type { Attachment } from "./conversation";

export const MAX_BYTES = 512 * 1024;
export const MAX_TOTAL = 2 * 1024 * 1024;

export type FileProblem = "big" | "binary" | "total";

/** Raises FileProblem as a FileError. */
export class FileError extends Error {
  constructor(readonly problem: FileProblem, readonly file: string) {
    super(problem);
  }
}

export async function readText(file: File, already: Attachment[]): Promise<Attachment> {
  if (file.size > MAX_BYTES) throw new FileError("big", file.name);
  const total = already.reduce((sum, one) => sum + one.text.length, 0);
  if (total + file.size > MAX_TOTAL) throw new FileError("total", file.name);
  return { name: file.name, text: decode(new Uint8Array(await file.arrayBuffer()), file.name) };
}

/** UTF-8, or UTF-16 with its mark; anything else, and text with NUL in it, is no text file. */
export function decode(bytes: Uint8Array, name: string): string {
  const mark = (bytes[0] ?? 0) * 256 + (bytes[1] ?? 0);
  const encoding = mark === 0xfffe ? "utf-16le" : mark === 0xfeff ? "utf-16be" : "utf-8";
  try {
    const text = new TextDecoder(encoding, { fatal: true }).decode(bytes);
    if (text.includes("\0")) throw new FileError("binary", name);
    return text.replace(/\r\n/g, "\n");
  } catch {
    throw new FileError("binary", name);
  }
}
