import { type ReactNode, useEffect, useId, useRef, useState } from "react";
import { useWords } from "../i18n/words";
import { DEFAULT_SAMPLING, inRange, parseTools, preferences, type Preferences, RANGES } from "../state/preferences";
import { canSwitchThinking, connect, defaultSampling, server } from "../state/server";
import { useStore } from "../state/store";
import { IconButton } from "./IconButton";
import { layout, useNarrow } from "./layout";
import { exportTo, importFrom } from "./Sidebar";

export function Settings() {
  const words = useWords();
  const element = useRef<HTMLElement>(null);
  const narrow = useNarrow();
  const opener = useRef(document.activeElement);
  useEffect(() => {
    const before = opener.current;
    element.current?.querySelector<HTMLElement>("button")?.focus();
    return () => {
      if (before instanceof HTMLElement && before.isConnected) before.focus();
    };
  }, []);
  return (
    <>
      {narrow && <div className="veil" onClick={() => layout.set({ settings: false })} />}
      <aside className="settings" aria-label={words.settings} ref={element}>
        <header>
          <h2>{words.settings}</h2>
          <IconButton icon="close" label={words.closeSettings} onClick={() => layout.set({ settings: false })} />
        </header>
        <ModelFields />
        <SamplingFields />
        <ToolsField />
        <Looks />
        <Access />
        <Data />
      </aside>
    </>
  );
}

function Group({ title, action, children }: { title: string; action?: ReactNode; children: ReactNode }) {
  return (
    <section className="group">
      <div className="group-head"><h3>{title}</h3>{action}</div>
      {children}
    </section>
  );
}

function ModelFields() {
  const words = useWords();
  const id = useId();
  const models = useStore(server, (value) => value.models);
  const switchable = useStore(server, (value) => canSwitchThinking(value.properties));
  const chosen = useStore(preferences, (value) => value);
  return (
    <Group title={words.model}>
      {models.length > 1 && (
        <div className="field">
          <label htmlFor={`${id}m`} className="visually-hidden">{words.model}</label>
          <select id={`${id}m`} value={models.includes(chosen.model) ? chosen.model : models[0]}
            onChange={(event) => preferences.set({ model: event.target.value })}>
            {models.map((name) => <option key={name}>{name}</option>)}
          </select>
        </div>
      )}
      {models.length === 1 && <p className="model-name">{models[0]}</p>}
      <div className="field">
        <label htmlFor={`${id}s`}>{words.system}</label>
        <textarea id={`${id}s`} rows={4} value={chosen.system} placeholder={words.systemHint}
          onChange={(event) => preferences.set({ system: event.target.value })} />
      </div>
      {switchable && (
        <Choice label={words.thinking} value={chosen.thinking}
          options={[["default", words.thinkingDefault], ["on", words.on], ["off", words.off]]}
          choose={(thinking) => preferences.set({ thinking })} />
      )}
    </Group>
  );
}

function SamplingFields() {
  const words = useWords();
  const id = useId();
  const sampling = useStore(preferences, (value) => value.sampling);
  const set = (change: Partial<Preferences["sampling"]>) =>
    preferences.set({ sampling: { ...preferences.get().sampling, ...change } });
  return (
    <Group title={words.sampling} action={
      <button type="button" className="quiet" onClick={() => preferences.set({ sampling: DEFAULT_SAMPLING })}>
        {words.reset}
      </button>
    }>
      <p className="hint">{words.samplingNote}</p>
      <div className="numbers">
        {(Object.keys(RANGES) as (keyof typeof RANGES)[]).map((name) => (
          <NumberField key={name} name={name} value={sampling[name]} set={(value) => set({ [name]: value })} />
        ))}
      </div>
      <div className="field">
        <label htmlFor={id}>{words.stopStrings}</label>
        <textarea id={id} rows={2} value={sampling.stop} aria-describedby={`${id}n`} spellCheck={false}
          onChange={(event) => set({ stop: event.target.value })} />
        <p className="hint" id={`${id}n`}>{words.stopStringsNote}</p>
      </div>
    </Group>
  );
}

interface NumberProps {
  name: keyof typeof RANGES;
  value: number | null;
  set: (value: number | null) => void;
}

function NumberField({ name, value, set }: NumberProps) {
  const words = useWords();
  const id = useId();
  const range = RANGES[name];
  const usual = useStore(server, (value) => defaultSampling(value.properties, name));
  const [text, setText] = useState(value === null ? "" : String(value));
  // A reset comes from outside; what is being typed does not.
  useEffect(() => {
    setText((old) => (old === "" || Number(old) !== value ? (value === null ? "" : String(value)) : old));
  }, [value]);
  const [wrong, setWrong] = useState(false);
  return (
    <div className="field number">
      <label htmlFor={id}>{words[name]}</label>
      <input id={id} type="text" inputMode="decimal" autoComplete="off" value={text}
        placeholder={usual === undefined ? words.modelDefault : String(usual)} aria-invalid={wrong} aria-describedby={`${id}n`}
        onChange={(event) => {
          const typed = event.target.value;
          setText(typed);
          const number = typed.trim() === "" ? null : inRange(Number(typed.replace(",", ".")), range);
          const bad = typed.trim() !== "" && number === null;
          setWrong(bad);
          if (!bad) set(number);
        }}
        onBlur={() => {
          if (!wrong) return;
          setWrong(false);
          setText(value === null ? "" : String(value));
        }} />
      <p className={wrong ? "hint wrong" : "hint"} id={`${id}n`} role={wrong ? "alert" : undefined}>
        {wrong ? words.outOfRange(range.min, range.max) : words[`${name}Note`]}
      </p>
    </div>
  );
}

function ToolsField() {
  const words = useWords();
  const id = useId();
  const tools = useStore(preferences, (value) => value.tools);
  const { problem } = parseTools(tools);
  return (
    <Group title={words.tools}>
      <div className="field">
        <label htmlFor={id} className="visually-hidden">{words.tools}</label>
        <textarea id={id} rows={4} className="mono" value={tools} spellCheck={false} aria-invalid={Boolean(problem)}
          aria-describedby={`${id}n`} onChange={(event) => preferences.set({ tools: event.target.value })} />
        <p className={problem ? "hint wrong" : "hint"} id={`${id}n`}>
          {problem ? words.toolsProblem[problem] : words.toolsNote}
        </p>
      </div>
    </Group>
  );
}

function Looks() {
  const words = useWords();
  const { theme, language } = useStore(preferences, (value) => value);
  return (
    <Group title={words.appearance}>
      <Choice label={words.theme} value={theme}
        options={[["system", words.themeSystem], ["light", words.themeLight], ["dark", words.themeDark]]}
        choose={(next) => preferences.set({ theme: next })} />
      <Choice label={words.language} value={language} options={[["en", "English"], ["zh", "中文"]]}
        choose={(next) => preferences.set({ language: next })} />
    </Group>
  );
}

interface ChoiceProps<T extends string> {
  label: string;
  value: T;
  options: [T, string][];
  choose: (value: T) => void;
}

/** Radio buttons side by side. */
function Choice<T extends string>({ label, value, options, choose }: ChoiceProps<T>) {
  const name = useId();
  return (
    <fieldset className="choice">
      <legend>{label}</legend>
      <div>
        {options.map(([key, text]) => (
          <label key={key}>
            <input type="radio" name={name} checked={key === value} onChange={() => choose(key)} />
            <span>{text}</span>
          </label>
        ))}
      </div>
    </fieldset>
  );
}

function Access() {
  const words = useWords();
  const id = useId();
  const kept = useStore(preferences, (value) => value.key);
  const [key, setKey] = useState(kept);
  return (
    <Group title={words.key}>
      <form className="field" onSubmit={(event) => {
        event.preventDefault();
        preferences.set({ key: key.trim() });
        void connect();
      }}>
        <label htmlFor={id} className="visually-hidden">{words.key}</label>
        <div className="with-button">
          <input id={id} type="password" autoComplete="off" value={key} aria-describedby={`${id}n`}
            onChange={(event) => setKey(event.target.value)} />
          <button type="submit" disabled={key.trim() === kept}>{words.save}</button>
        </div>
        <p className="hint" id={`${id}n`}>{words.keyNote}</p>
      </form>
    </Group>
  );
}

function Data() {
  const words = useWords();
  const picker = useRef<HTMLInputElement>(null);
  return (
    <Group title={words.data}>
      <div className="buttons start">
        <IconButton icon="download" label={words.exportAll} worded
          onClick={() => void exportTo("ktransformers-conversations.json")} />
        <IconButton icon="upload" label={words.importFile} worded onClick={() => picker.current!.click()} />
        <input type="file" accept="application/json,.json" hidden ref={picker} data-testid="import"
          onChange={(event) => {
            const file = event.target.files?.[0];
            if (file) void importFrom(file, words);
            event.target.value = "";
          }} />
      </div>
    </Group>
  );
}
