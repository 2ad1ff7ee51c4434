/** Line icons on a 20 × 20 field. Decorative: the control around one carries the words. */

const PATHS = {
  menu: "M3 6h14M3 10h14M3 14h9",
  plus: "M10 4v12M4 10h12",
  search: "M9 3.5a5.5 5.5 0 1 0 0 11 5.5 5.5 0 0 0 0-11ZM13 13l4 4",
  close: "M5 5l10 10M15 5L5 15",
  more: "M4.5 10h.01M10 10h.01M15.5 10h.01",
  up: "M10 16V4M5 9l5-5 5 5",
  down: "M10 4v12M5 11l5 5 5-5",
  clip: "M15.5 9.5l-5.8 5.8a3.2 3.2 0 0 1-4.6-4.6l6.3-6.2a2.1 2.1 0 0 1 3 3l-6.2 6.2a1 1 0 0 1-1.5-1.5l5.6-5.5",
  copy: "M7 7V4h9v9h-3M4 7h9v9H4z",
  check: "M4 10.5l4 4 8-9",
  pencil: "M4 16l.8-3.4L13.4 4l2.6 2.6-8.6 8.6L4 16ZM11.6 5.8l2.6 2.6",
  again: "M15.5 7.5A6 6 0 1 0 16 11M16 4v4h-4",
  bin: "M4 6h12M8 6V4h4v2M5.5 6l.7 10h7.6l.7-10M8.5 9v4M11.5 9v4",
  left: "M12 5l-5 5 5 5",
  right: "M8 5l5 5-5 5",
  sliders: "M3 6h7M14 6h3M3 14h3M10 14h7M12 4v4M8 12v4",
  layers: "M10 3l7 3.5-7 3.5-7-3.5L10 3ZM3 10l7 3.5 7-3.5M3 13.5L10 17l7-3.5",
  sun: "M10 6.5a3.5 3.5 0 1 0 0 7 3.5 3.5 0 0 0 0-7ZM10 2v1.5M10 16.5V18M2 10h1.5M16.5 10H18M4.3 4.3l1.1 1.1M14.6 14.6l1.1 1.1M4.3 15.7l1.1-1.1M14.6 5.4l1.1-1.1",
  moon: "M16 11.5A6.5 6.5 0 0 1 8.5 4a6.5 6.5 0 1 0 7.5 7.5Z",
  file: "M5 3h6l4 4v10H5zM11 3v4h4",
  wrench: "M16 6.2a3.8 3.8 0 0 1-5 4.8l-5.2 5.2a1.4 1.4 0 0 1-2-2L9 9a3.8 3.8 0 0 1 4.8-5l-2.3 2.3.3 1.9 1.9.3L16 6.2Z",
  keys: "M2.5 5.5h15v9h-15zM5.5 8.5h.01M8.5 8.5h.01M11.5 8.5h.01M14.5 8.5h.01M6.5 11.5h7",
  download: "M10 3v10M6 9.5l4 4 4-4M4 16.5h12",
  upload: "M10 13.5v-10M6 7l4-4 4 4M4 16.5h12",
} as const;

export type IconName = keyof typeof PATHS | "stop";

export function Icon({ name }: { name: IconName }) {
  return (
    <svg className="icon" viewBox="0 0 20 20" width="20" height="20" aria-hidden="true" focusable="false">
      {name === "stop" ? <rect x="5" y="5" width="10" height="10" rx="1.5" fill="currentColor" /> : (
        <path d={PATHS[name]} fill="none" stroke="currentColor" strokeWidth={name === "more" ? 2.2 : 1.5}
          strokeLinecap="round" strokeLinejoin="round" />
      )}
    </svg>
  );
}

/** The mark: a few experts of many at work. */
export function Mark() {
  const lit: Record<number, string> = { 1: "gpu", 5: "gpu", 6: "cpu" };
  return (
    <svg className="mark" viewBox="0 0 26 26" width="26" height="26" aria-hidden="true" focusable="false">
      {Array.from({ length: 9 }, (_, index) => (
        <rect key={index} x={1 + (index % 3) * 8.4} y={1 + Math.floor(index / 3) * 8.4} width="7" height="7"
          rx="1.8" className={lit[index] ?? "idle"} />
      ))}
    </svg>
  );
}
