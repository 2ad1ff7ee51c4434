/** Character references in Markdown text, without giving it to an HTML parser. */

const NAMED: Record<string, string> = {
  amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", ndash: "–", mdash: "—",
  hellip: "…", copy: "©", reg: "®", trade: "™", times: "×", divide: "÷", plusmn: "±", deg: "°",
  larr: "←", rarr: "→", uarr: "↑", darr: "↓", harr: "↔", le: "≤", ge: "≥", ne: "≠", infin: "∞",
  middot: "·", bull: "•", lsquo: "‘", rsquo: "’", ldquo: "“", rdquo: "”", euro: "€", pound: "£",
  yen: "¥", cent: "¢", sect: "§", para: "¶", micro: "µ", alpha: "α", beta: "β", gamma: "γ",
  delta: "δ", lambda: "λ", mu: "μ", pi: "π", sigma: "σ", omega: "ω", sum: "∑", minus: "−",
  radic: "√", asymp: "≈", equiv: "≡", laquo: "«", raquo: "»", ensp: "\u2002", emsp: "\u2003",
};

/** `text` with its references replaced; an unknown one stays as written. */
export function decodeEntities(text: string): string {
  if (!text.includes("&")) return text;
  return text.replace(/&(?:#(\d{1,7})|#[xX]([\da-fA-F]{1,6})|([A-Za-z]{2,10}));/g, (all, dec, hex, name) => {
    if (name) return Object.hasOwn(NAMED, name) ? NAMED[name]! : all;
    const code = dec ? Number(dec) : parseInt(hex, 16);
    const valid = code > 0 && code <= 0x10ffff && !(code >= 0xd800 && code < 0xe000);
    return valid ? String.fromCodePoint(code) : "\ufffd";
  });
}
