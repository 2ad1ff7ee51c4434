import { useMemo } from "react";
import { useWords } from "../i18n/words";
import { deviceClass, layerMap, type PlanRow, ranges } from "./plan";

/** The model as a woven band: a column per layer, a thread per part, coloured by device. */
export function LayerMap({ rows }: { rows: PlanRow[] }) {
  const words = useWords();
  const { layers, map } = useMemo(() => layerMap(rows), [rows]);
  if (!layers) return null;
  return (
    <section aria-label={words.layerMap}>
      <h3>{words.layerMap}</h3>
      <p className="subtle">{words.layerMapNote}</p>
      <div className="layer-map">
        {[...map.entries()].map(([component, cells]) => {
          const byDevice = new Map<string, number[]>();
          cells.forEach((cell, layer) => {
            if (cell) byDevice.set(cell.device, [...(byDevice.get(cell.device) ?? []), layer]);
          });
          const told = [...byDevice].map(([device, held]) => `${device}: ${ranges(held)}`).join("; ");
          return (
            <div className="thread-row" key={component}>
              <span className="thread-name">{words.component[component]}</span>
              <span className="cells" role="img" aria-label={`${words.component[component]}. ${told}`}>
                {cells.map((cell, layer) => (
                  <span key={layer} className={`cell ${cell ? deviceClass(cell.device) : "none"}`}
                    title={cell ? `${words.layerMapCell(words.component[component], layer, cell.device)}. ${cell.why}` : undefined} />
                ))}
              </span>
            </div>
          );
        })}
        <div className="thread-row axis" aria-hidden="true">
          <span />
          <span className="cells"><span>0</span><span>{layers - 1}</span></span>
        </div>
      </div>
    </section>
  );
}
