/** Addresses a link in a model's text may have: http, https and mailto. Everything else is text. */

export function safeUrl(href: string): string | null {
  // Browsers skip control characters and spaces in a scheme: "java\nscript:" is javascript.
  const clean = href.replace(/[\u0000-\u0020\u007f-\u009f\u200b-\u200f\u2028\u2029]/g, "");
  try {
    const url = new URL(clean);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null; // relative: there is nothing here it could mean
  }
}
