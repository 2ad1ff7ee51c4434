import { brief, count, useWords } from "../i18n/words";
import type { Generation } from "../state/server";

/** Who is served at the moment: numbers only, nobody's words. */
export function Generations({ list }: { list: Generation[] }) {
  const words = useWords();
  if (!list.length) return null;
  const names = words.answersTable;
  return (
    <section aria-label={words.answers}>
      <h3>{words.answers}</h3>
      <div className="scroll" tabIndex={0} role="group" aria-label={words.answers}>
        <table className="modules generations">
          <thead>
            <tr>
              <th scope="col">{names.number}</th>
              <th scope="col">{names.state}</th>
              <th scope="col" className="to-right">{names.prompt}</th>
              <th scope="col" className="to-right">{names.cached}</th>
              <th scope="col" className="to-right">{names.generated}</th>
              <th scope="col" className="to-right">{names.speed}</th>
              <th scope="col" className="to-right">{names.time}</th>
            </tr>
          </thead>
          <tbody>
            {list.map((one) => (
              <tr key={one.id}>
                <td className="figure">{one.id}</td>
                <td>{words.answerState[one.state] ?? one.state}</td>
                <td className="figure to-right">
                  {one.promptLeft
                    ? words.promptDone(count(one.prompt - one.promptLeft), count(one.prompt))
                    : count(one.prompt)}
                </td>
                <td className="figure to-right">{count(one.cached)}</td>
                <td className="figure to-right">{count(one.generated)}</td>
                <td className="figure to-right">
                  {one.speed === undefined ? "–" : `${brief(one.speed)} ${words.perSecond}`}
                </td>
                <td className="figure to-right">{words.seconds(one.seconds.toFixed(1))}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}
