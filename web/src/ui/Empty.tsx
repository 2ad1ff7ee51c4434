import { useWords } from "../i18n/words";
import { sizeText, totals } from "../placement/plan";
import { preferences } from "../state/preferences";
import { server } from "../state/server";
import { useStore } from "../state/store";
import { Mark } from "./Icon";

/** Before the first question: which model will answer, and what carries it. */
export function Empty() {
  const words = useWords();
  const { models, placement } = useStore(server, (value) => value);
  const chosen = useStore(preferences, (value) => value.model);
  const model = models.includes(chosen) ? chosen : models[0];
  const devices = placement ? totals(placement.rows) : [];
  const where = devices.map((one) => `${sizeText(one.bytes)} ${words.onDevice(one.device)}`).join(words.and);
  return (
    <div className="empty column">
      <Mark />
      <h2>{words.emptyTitle}</h2>
      {model && <p><strong>{model}</strong>{where && <><br />{where}</>}</p>}
    </div>
  );
}
