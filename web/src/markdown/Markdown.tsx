/** A model's text on the page. React elements only: markup in the text is shown, never parsed. */

import type { Token, Tokens } from "marked";
import { createElement, memo, type ReactNode, useMemo } from "react";
import { Code } from "./Code";
import { decodeEntities } from "./entities";
import { blocks, type MathToken } from "./lexer";
import { Formula } from "./Formula";
import { safeUrl } from "./url";

interface Props {
  text: string;
  /** Still being written: the last block changes with every token. */
  live?: boolean;
  words: { copy: string; copied: string; code: string; table: string; image: string };
}

export const Markdown = memo(function Markdown({ text, live = false, words }: Props) {
  const tokens = useMemo(() => blocks(text), [text]);
  return (
    <div className="markdown">
      {tokens.map((token, index) => (
        // A block's place in the text is its identity: only the last one grows.
        <Block key={index} token={token} words={words} live={live && index === tokens.length - 1} />
      ))}
    </div>
  );
});

interface BlockProps {
  token: Token;
  words: Props["words"];
  live: boolean;
}

const Block = memo(
  function Block({ token, words, live }: BlockProps) {
    return <>{new Renderer(words, live).block(token)}</>;
  },
  (a, b) =>
    a.token.raw === b.token.raw && a.token.type === b.token.type && a.words === b.words && a.live === b.live,
);

class Renderer {
  constructor(private readonly words: Props["words"], private readonly live: boolean) {}

  private all(tokens: Token[] | undefined, how: (token: Token) => ReactNode): ReactNode[] {
    return (tokens ?? []).map((token, index) =>
      createElement(Keyed, { key: index, children: how(token) }));
  }

  private blocks = (tokens: Token[] | undefined) => this.all(tokens, (token) => this.block(token));
  private spans = (tokens: Token[] | undefined) => this.all(tokens, (token) => this.span(token));

  block(token: Token): ReactNode {
    switch (token.type) {
      case "heading":
        // The page has its own first two levels.
        return createElement(`h${Math.min(6, (token as Tokens.Heading).depth + 2)}`, {
          children: this.spans(token.tokens),
          className: `level-${(token as Tokens.Heading).depth}`,
        });
      case "paragraph":
        return <p>{this.spans(token.tokens)}</p>;
      case "code": {
        const { text, lang } = token as Tokens.Code;
        return <Code text={text} language={lang ?? ""} live={this.live} words={this.words} />;
      }
      case "blockquote":
        return <blockquote>{this.blocks(token.tokens)}</blockquote>;
      case "list":
        return this.list(token as Tokens.List);
      case "table":
        return this.table(token as Tokens.Table);
      case "hr":
        return <hr />;
      case "math":
        return <Formula tex={(token as unknown as MathToken).tex} display />;
      case "html":
        return <p className="raw">{token.raw.trimEnd()}</p>;
      case "space":
      case "def":
        return null;
      default:
        // Text directly in a list item.
        return token.type === "text" ? this.span(token) : <p>{this.span(token)}</p>;
    }
  }

  private list(list: Tokens.List): ReactNode {
    const items = list.items.map((item, index) => (
      <li key={index} className={item.task ? "task" : undefined}>
        {item.task && (
          <input type="checkbox" checked={Boolean(item.checked)} disabled aria-label={item.checked ? "☑" : "☐"} />
        )}
        {this.blocks(item.tokens.filter((token) => token.type !== "checkbox"))}
      </li>
    ));
    if (!list.ordered) return <ul>{items}</ul>;
    return <ol start={typeof list.start === "number" ? list.start : 1}>{items}</ol>;
  }

  private table(table: Tokens.Table): ReactNode {
    const cell = (one: Tokens.TableCell, index: number, as: "th" | "td") =>
      createElement(as, {
        key: index,
        scope: as === "th" ? "col" : undefined,
        className: one.align ? `to-${one.align}` : undefined,
        children: this.spans(one.tokens),
      });
    return (
      <div className="scroll" tabIndex={0} role="group" aria-label={this.words.table}>
        <table>
          <thead><tr>{table.header.map((one, index) => cell(one, index, "th"))}</tr></thead>
          <tbody>
            {table.rows.map((row, index) => (
              <tr key={index}>{row.map((one, at) => cell(one, at, "td"))}</tr>
            ))}
          </tbody>
        </table>
      </div>
    );
  }

  private span(token: Token): ReactNode {
    switch (token.type) {
      case "strong":
        return <strong>{this.spans(token.tokens)}</strong>;
      case "em":
        return <em>{this.spans(token.tokens)}</em>;
      case "del":
        return <del>{this.spans(token.tokens)}</del>;
      case "codespan":
        return <code>{(token as Tokens.Codespan).text}</code>;
      case "br":
        return <br />;
      case "link": {
        const { href } = token as Tokens.Link;
        return this.link(href, this.spans(token.tokens), token.raw);
      }
      case "image": {
        // Fetching it would tell somebody that this text was read: it stays a link.
        const { href, text } = token as Tokens.Image;
        return this.link(href, `${this.words.image}: ${text || href}`, token.raw);
      }
      case "math": {
        const { tex, display } = token as unknown as MathToken;
        return <Formula tex={tex} display={display} />;
      }
      case "html":
        return /^<br\s*\/?>$/i.test(token.raw.trim()) ? <br /> : token.raw;
      case "escape":
        return (token as Tokens.Escape).text;
      case "text":
        return token.tokens?.length
          ? this.spans(token.tokens)
          : decodeEntities((token as Tokens.Text).raw);
      default:
        return token.raw;
    }
  }

  private link(href: string, children: ReactNode, raw: string): ReactNode {
    const url = safeUrl(href);
    if (!url) return <span className="raw">{raw}</span>;
    return <a href={url} target="_blank" rel="noopener noreferrer nofollow">{children}</a>;
  }
}

function Keyed({ children }: { children: ReactNode }) {
  return <>{children}</>;
}
