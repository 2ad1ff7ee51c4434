/** GitHub-flavoured Markdown with TeX, as marked's tokens. No HTML is ever made from them. */

import { Marked, type Token, type TokenizerExtension } from "marked";

export interface MathToken {
  type: "math";
  raw: string;
  tex: string;
  display: boolean;
}

/** $$ … $$ or \[ … \] as a paragraph of its own. */
const blockMath: TokenizerExtension = {
  name: "mathBlock",
  level: "block",
  start: (source) => first(source, /(^|\n) {0,3}(\$\$|\\\[)/),
  tokenizer(source) {
    const match =
      /^ {0,3}\$\$([\s\S]+?)\$\$[ \t]*(?:\n|$)/.exec(source) ??
      /^ {0,3}\\\[([\s\S]+?)\\\][ \t]*(?:\n|$)/.exec(source);
    return match ? math(match[0], match[1]!, true) : undefined;
  },
};

/**
 * \( … \), $ … $ and, within a line of text, $$ … $$ and \[ … \]. A dollar opens only before a
 * non-space and closes only after one and not before a digit, so "from $5 to $10" stays text.
 */
const inlineMath: TokenizerExtension = {
  name: "mathInline",
  level: "inline",
  start: (source) => first(source, /\$|\\\(|\\\[/),
  tokenizer(source) {
    const display =
      /^\$\$((?:[^$\\]|\\[\s\S])+?)\$\$/.exec(source) ?? /^\\\[([\s\S]+?)\\\]/.exec(source);
    if (display) return math(display[0], display[1]!, true);
    const inline =
      /^\\\(([\s\S]+?)\\\)/.exec(source) ??
      /^\$(?![\s$])((?:[^$\\\n]|\\.)*?(?:[^\s$\\]|\\.))\$(?![\d$])/.exec(source);
    return inline ? math(inline[0], inline[1]!, false) : undefined;
  },
};

function first(source: string, pattern: RegExp): number | undefined {
  const match = pattern.exec(source);
  return match ? match.index : undefined;
}

function math(raw: string, tex: string, display: boolean): MathToken {
  return { type: "math", raw, tex: tex.trim(), display };
}

const marked = new Marked({ gfm: true, breaks: false });
marked.use({ extensions: [blockMath, inlineMath] });

/** The top-level blocks of a text; white space between blocks is left out. */
export function blocks(text: string): Token[] {
  try {
    return marked.lexer(text).filter((token) => token.type !== "space" && token.type !== "def");
  } catch {
    // Quotes inside of quotes, thousands deep, exhaust the parser's stack: the text stands as written.
    return [{ type: "html", raw: text, text, block: true, pre: false }];
  }
}
