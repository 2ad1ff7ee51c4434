/** The page's signature: where the weights are, as one bar, on the way to the placement view. */

import { useWords } from "../i18n/words";
import { deviceClass, sizeText, totals } from "../placement/plan";
import { server } from "../state/server";
import { useStore } from "../state/store";
import { layout, useRoute } from "./layout";

export function MemoryStrip() {
  const words = useWords();
  const placement = useStore(server, (value) => value.placement);
  const current = useRoute().view === "placement";
  const devices = placement ? totals(placement.rows) : [];
  const all = devices.reduce((sum, one) => sum + one.bytes, 0);
  return (
    <a className="memory" href="#/placement" aria-current={current ? "page" : undefined}
      onClick={() => layout.set({ menu: false })}>
      <span className="memory-title">{words.placement}</span>
      <span className="bar" aria-hidden="true">
        {devices.map((one) => (
          <span key={one.device} className={`part ${deviceClass(one.device)}`}
            style={{ flexGrow: Math.max(one.bytes / (all || 1), 0.01) }} />
        ))}
      </span>
      <span className="memory-text">
        {devices.map((one) => `${sizeText(one.bytes)} ${one.device}`).join(" · ") || " "}
      </span>
    </a>
  );
}
