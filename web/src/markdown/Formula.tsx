/** TeX through KaTeX, loaded with the first formula. It builds DOM nodes itself: no HTML strings. */

import { useEffect, useLayoutEffect, useRef, useState } from "react";

type Katex = typeof import("katex").default;
let katex: Katex | undefined;
let loading: Promise<Katex> | undefined;

function load(): Promise<Katex> {
  loading ??= Promise.all([import("katex"), import("katex/dist/katex.min.css")]).then(
    ([module]) => (katex = module.default),
  );
  loading.catch(() => (loading = undefined)); // the next formula tries again
  return loading;
}

/** Until the library is there, and where it cannot read the formula, the TeX itself stands. */
export function Formula({ tex, display }: { tex: string; display: boolean }) {
  const place = useRef<HTMLSpanElement>(null);
  const [ready, setReady] = useState(katex !== undefined);

  useEffect(() => {
    if (ready) return;
    let mounted = true;
    load().then(() => mounted && setReady(true), () => undefined);
    return () => {
      mounted = false;
    };
  }, [ready]);

  useLayoutEffect(() => {
    const span = place.current;
    if (!span) return;
    span.textContent = tex;
    if (!katex) return;
    try {
      katex.render(tex, span, {
        displayMode: display,
        throwOnError: true,
        trust: false,
        strict: "ignore",
        maxExpand: 500,
        maxSize: 20,
      });
    } catch {
      span.textContent = tex;
    }
  }, [tex, display, ready]);

  return display ? (
    <span className="formula display" tabIndex={0} role="group" aria-label={tex}><span ref={place} /></span>
  ) : (
    <span className="formula"><span ref={place} /></span>
  );
}
