import { renderToStaticMarkup } from "react-dom/server";
import { describe, expect, it } from "vitest";
import { decodeEntities } from "../../src/markdown/entities";
import { blocks, type MathToken } from "../../src/markdown/lexer";
import { Markdown } from "../../src/markdown/Markdown";
import { safeUrl } from "../../src/markdown/url";

const words = { copy: "Copy", copied: "Copied", code: "Code", table: "Table", image: "Image" };
const html = (text: string) => renderToStaticMarkup(<Markdown text={text} words={words} />);

/** All formulas of a text, with "D:" before displayed ones. */
function formulas(text: string): string[] {
  const found: string[] = [];
  const walk = (tokens: { type: string; tokens?: unknown[] }[]) => {
    for (const token of tokens) {
      if (token.type === "math") {
        const { tex, display } = token as unknown as MathToken;
        found.push((display ? "D:" : "") + tex);
      } else if (token.tokens) walk(token.tokens as never);
    }
  };
  walk(blocks(text) as never);
  return found;
}

describe("formulas", () => {
  it.each([
    ["a $x^2$ b", ["x^2"]],
    ["\\(a+b\\) and \\[c\\]", ["a+b", "D:c"]],
    ["$$\nx = 1\n$$", ["D:x = 1"]],
    ["text\n\\[\n\\frac{1}{2}\n\\]\nmore", ["D:\\frac{1}{2}"]],
    ["from $5 to $10", []],
    ["it costs $5 and $ 6 $", []],
    ["`$x$`", []],
    ["```\n$x$\n```", []],
    ["$a_1 * b_2 * c$ and *so*", ["a_1 * b_2 * c"]],
    ["\\$x\\$", []],
    ["$\\$5$", ["\\$5"]],
    ["| a |\n|--|\n| $|x|$ |", []],
    ["$$unfinished", []],
  ])("%s", (text, expected) => {
    expect(formulas(text)).toEqual(expected);
  });
});

describe("Markdown", () => {
  it("renders the usual", () => {
    const made = html("# T\n\n*a* **b** ~~c~~ `d&e`\n\n1. x\n2. y\n\n- [x] done\n\n> q\n\n|a|b|\n|-|-:|\n|1|2|\n\nx<br>y &copy;");
    for (const part of ['<h3 class="level-1">T</h3>', "<em>a</em>", "<strong>b</strong>", "<del>c</del>",
      "<code>d&amp;e</code>", "<ol start=\"1\">", "<blockquote>", '<td class="to-right">2</td>', "x<br/>y ©", "checked"]) {
      expect(made).toContain(part);
    }
  });

  it("starts a list where the text does", () => {
    expect(html("3. three")).toContain('<ol start="3">');
  });

  it.each([
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "a <b onclick=x>b</b>",
    "<svg/onload=alert(1)>", "<style>*{}</style>", "<!-- --><iframe src=//x>", "<a href=javascript:x>y</a>",
    "[x](javascript:alert(1))", "[x](JaVaScRiPt:alert(1))", "[x](java\tscript:alert(1))", "[x](&#106;avascript:alert(1))",
    "[x](data:text/html,x)", "[x](vbscript:x)", "[x](file:///etc/passwd)", "<javascript:alert(1)>", "[x](//evil.example)",
    "![x](https://evil.example/p.png)", "[r]\n\n[r]: javascript:alert(1)",
  ])("makes no element and no address of %s", (text) => {
    const made = html(text);
    expect(made).not.toMatch(/<(script|img|svg|style|iframe|b|object|embed|form)\b/);
    expect(made).not.toMatch(/(href|src|on\w+)="(?!https:\/\/evil\.example\/p\.png")/);
  });

  it("keeps a picture as a link, for a click to decide", () => {
    expect(html("![alt](https://x.example/p.png)")).toContain(
      '<a href="https://x.example/p.png" target="_blank" rel="noopener noreferrer nofollow">Image: alt</a>',
    );
  });

  it("never throws on a text cut anywhere", () => {
    const text = "# a\n\n$$x$$ [l](http://x) | a |\n|--|\n\n```js\nlet x\n```\n- *b* \\(y\\) <b>";
    for (let end = 0; end <= text.length; end++) expect(() => html(text.slice(0, end))).not.toThrow();
  });

  it.each(["> ", "- ", "[", "![", "**a", "<", "`", "$", "\\[", "~~"])("survives %j two thousand times", (piece) => {
    expect(() => html(piece.repeat(2_000))).not.toThrow();
  });

  it("shows as written what is too deep to parse", () => {
    expect(html("> ".repeat(10_000) + "deep")).toContain("&gt; &gt; deep");
  });
});

describe("addresses and entities", () => {
  it("lets through http, https and mailto", () => {
    expect(safeUrl("https://a.example/b?c=d&e")).toBe("https://a.example/b?c=d&e");
    expect(safeUrl("mailto:a@b.example")).toBe("mailto:a@b.example");
    for (const bad of ["javascript:x", "\u0001javascript:x", "java\u200bscript:x", "/v1/models", "blob:x", "ws://x"]) {
      expect(safeUrl(bad)).toBeNull();
    }
  });

  it("decodes references once", () => {
    expect(decodeEntities("&lt;b&gt; &amp;lt; &#x1F600; &#0; &nosuch; &constructor;")).toBe("<b> &lt; 😀 \ufffd &nosuch; &constructor;");
  });
});
