import { brief, count, useWords } from "../i18n/words";
import type { Load } from "../state/server";

/** Live figures of the queue; what the server does not tell is left out. */
export function LoadFigures({ load }: { load: Load }) {
  const words = useWords();
  const figures: [string, string, string][] = [];
  const add = (name: keyof Words, value: number | undefined, text: (value: number) => string, unit = "") => {
    if (value !== undefined) figures.push([words.load[name], text(value), unit]);
  };
  type Words = typeof words.load;
  add("running", load.running, count);
  add("waiting", load.waiting, count);
  add("generated", load.generated, brief, words.perSecond);
  add("prompted", load.prompted, brief, words.perSecond);
  add("cache", load.cache, (value) => `${brief(value * 100)} %`);
  add("cached", load.cached, count, words.tokens);
  add("requests", load.requests, count);
  return (
    <section aria-label={words.now}>
      <h3>{words.now}</h3>
      {figures.length ? (
        <dl className="figures">
          {figures.map(([name, value, unit]) => (
            <div key={name}><dt>{name}</dt><dd>{value}{unit && <small> {unit}</small>}</dd></div>
          ))}
        </dl>
      ) : <p className="subtle">{words.loadEmpty}</p>}
    </section>
  );
}
