/** What runs where, by which rule, and why; and what the server is doing at the moment. */

import { useEffect, useMemo } from "react";
import { useWords } from "../i18n/words";
import { loadPlacement, lookAtLoad, server, watch } from "../state/server";
import { useStore } from "../state/store";
import { LayerMap } from "./LayerMap";
import { LoadFigures } from "./LoadFigures";
import { Generations } from "./Generations";
import { deviceClass, type Line, lines, type Placement, ranges, sizeText, totals } from "./plan";

export function PlacementView() {
  const words = useWords();
  const { placement, placementProblem, models, load } = useStore(server, (value) => value);
  useEffect(() => void loadPlacement(), []);
  useEffect(() => watch(2000, lookAtLoad), []);
  return (
    <div className="placement" tabIndex={0} role="region" aria-label={words.placement}>
      <div className="wide-column">
        <header>
          <h2>{words.placementTitle}</h2>
          <p className="subtle">{[models.join(", "), placement?.rules].filter(Boolean).join(" · ")}</p>
        </header>
        <LoadFigures load={load} />
        <Generations list={load.generations} />
        {placement?.rows.length ? <Plan placement={placement} /> : (
          <p className="subtle">{placementProblem?.message || words.placementEmpty}</p>
        )}
      </div>
    </div>
  );
}

function Plan({ placement }: { placement: Placement }) {
  const words = useWords();
  const devices = useMemo(() => totals(placement.rows), [placement]);
  const table = useMemo(() => lines(placement.rows), [placement]);
  const largest = Math.max(...devices.map((one) => placement.capacity[one.device] ?? one.bytes));
  return (
    <>
      <section aria-label={words.byDevice}>
        <h3>{words.byDevice}</h3>
        <ul className="devices">
          {devices.map((one) => (
            <Device key={one.device} {...one} capacity={placement.capacity[one.device]} scale={largest} />
          ))}
        </ul>
        <p className="subtle machine">{machineText(placement, words)}</p>
      </section>
      <LayerMap rows={placement.rows} />
      <section aria-label={words.modules}>
        <h3>{words.modules}</h3>
        <div className="scroll" tabIndex={0} role="group" aria-label={words.modules}>
          <table className="modules">
            <thead>
              <tr>
                <th scope="col">{words.table_.part}</th>
                <th scope="col">{words.table_.module}</th>
                <th scope="col">{words.table_.layers}</th>
                <th scope="col">{words.table_.operator}</th>
                <th scope="col">{words.table_.device}</th>
                <th scope="col">{words.table_.formats}</th>
                <th scope="col" className="to-right">{words.table_.size}</th>
              </tr>
            </thead>
            <tbody>{table.map((line, index) => <ModuleRow key={index} line={line} />)}</tbody>
          </table>
        </div>
      </section>
      {placement.notes.length > 0 && (
        <section aria-label={words.notes}>
          <h3>{words.notes}</h3>
          <ul className="plan-notes">{placement.notes.map((note, index) => <li key={index}>{note}</li>)}</ul>
        </section>
      )}
    </>
  );
}

/** The cache and what computes, in one line. */
function machineText({ cache, machine }: Placement, words: ReturnType<typeof useWords>): string {
  return [
    cache && words.cacheText(sizeText(cache.bytes), sizeText(cache.perPosition), cache.type),
    machine.isa && words.machineText(machine.isa, machine.threads),
    machine.activations && words.activationsText(machine.activations),
  ].filter(Boolean).join(" · ");
}

interface DeviceProps {
  device: string;
  bytes: number;
  parts: [keyof ReturnType<typeof useWords>["component"], number][];
  capacity?: number;
  scale: number;
}

function Device({ device, bytes, parts, capacity, scale }: DeviceProps) {
  const words = useWords();
  const kind = deviceClass(device);
  return (
    <li>
      <div className="device-head">
        <span className={`swatch ${kind}`} aria-hidden="true" />
        <strong>{device}</strong>
        <span className="subtle">
          {capacity ? words.ofCapacity(sizeText(bytes), sizeText(capacity)) : sizeText(bytes)}
        </span>
      </div>
      <div className="bar" aria-hidden="true" style={{ width: `${((capacity ?? bytes) / scale) * 100}%` }}>
        {parts.map(([component, size], index) => (
          <span key={component} className={`part ${kind} shade-${Math.min(index, 4)}`}
            style={{ width: `${(size / (capacity ?? bytes)) * 100}%` }} />
        ))}
      </div>
      <ul className="parts">
        {parts.map(([component, size], index) => (
          <li key={component}>
            <span className={`swatch ${kind} shade-${Math.min(index, 4)}`} aria-hidden="true" />
            {words.component[component]} <span className="subtle">{sizeText(size)}</span>
          </li>
        ))}
      </ul>
    </li>
  );
}

function ModuleRow({ line }: { line: Line }) {
  const words = useWords();
  const { row } = line;
  return (
    <tr>
      <td>{words.component[line.component]}</td>
      <td className="what">
        <code>{line.pattern.replace(".layers.*", ".layers.N")}</code>
        <p className="why">{row.why} {row.rule && <span className="rule">{row.rule}</span>}</p>
      </td>
      <td className="figure">{ranges(line.layers)}</td>
      <td><code>{row.operator}</code></td>
      <td>
        <span className={`swatch ${deviceClass(row.device)}`} aria-hidden="true" /> {row.device}
        {row.backend && !row.device.startsWith(row.backend) && <span className="subtle"> ({row.backend})</span>}
      </td>
      <td>{line.formats.join(", ")}</td>
      <td className="figure to-right">
        {sizeText(line.bytes)}{row.shared && <span className="subtle"> ({words.shared})</span>}
      </td>
    </tr>
  );
}
