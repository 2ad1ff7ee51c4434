import { brief, count, useWords } from "../i18n/words";
import { speed } from "../state/answers";
import type { Stats } from "../state/conversation";

/** What an answer took: speed, length, time to the first token. */
export function StatsLine({ stats }: { stats?: Stats }) {
  const words = useWords();
  if (!stats?.tokens) return null;
  const rate = speed(stats);
  const parts = [
    rate === undefined ? "" : words.statsSpeed(brief(rate)),
    words.statsTokens(stats.tokens),
    stats.firstToken === undefined ? "" : words.statsFirst(brief(stats.firstToken / 1000)),
    stats.cachedTokens ? words.statsCached(count(stats.cachedTokens)) : "",
  ];
  return <span className="stats">{parts.filter(Boolean).join(" · ")}</span>;
}
