import { useEffect, useRef, useState } from "react";
import type { Words } from "../i18n/en";
import { useWords } from "../i18n/words";
import { answers } from "../state/answers";
import * as archive from "../state/chats";
import { chats } from "../state/chats";
import type { Head } from "../state/db";
import { preferences } from "../state/preferences";
import { useStore } from "../state/store";
import { ImportError, MAX_FILE } from "../state/transfer";
import { Icon, Mark } from "./Icon";
import { IconButton } from "./IconButton";
import { download, focusComposer, layout, useNarrow, useRoute } from "./layout";
import { MemoryStrip } from "./MemoryStrip";

export function Sidebar() {
  const words = useWords();
  const narrow = useNarrow();
  const open = useStore(layout, (value) => value.menu);
  const element = useRef<HTMLElement>(null);
  const closeMenu = () => layout.set({ menu: false });

  useEffect(() => {
    if (narrow && open) element.current?.querySelector<HTMLElement>("a, button")?.focus();
  }, [narrow, open]);

  if (narrow && !open) return null;
  return (
    <>
      {narrow && <div className="veil" onClick={closeMenu} />}
      <nav className="sidebar" aria-label={words.menu} ref={element}>
        <div className="brand">
          <Mark />
          <span>{words.appName}</span>
          {narrow && <IconButton icon="close" label={words.closeMenu} onClick={closeMenu} />}
        </div>
        <a className="new-chat" href="#/" onClick={() => { closeMenu(); focusComposer(); }}>
          <Icon name="plus" />{words.newChat}
        </a>
        <Search />
        <List />
        <Footer />
      </nav>
    </>
  );
}

function Search() {
  const words = useWords();
  const query = useStore(chats, (value) => value.query);
  return (
    <div className="search">
      <Icon name="search" />
      <input id="search" type="search" value={query} aria-label={words.search} placeholder={words.search}
        onChange={(event) => void archive.search(event.target.value)} autoComplete="off" />
    </div>
  );
}

const DAY = 86_400_000;

/** The list in three ages; an age without conversations is left out. */
function aged(heads: Head[], words: Words): [string, Head[]][] {
  const midnight = new Date().setHours(0, 0, 0, 0);
  const groups: [string, Head[]][] = [
    [words.today, heads.filter((one) => one.updatedAt >= midnight)],
    [words.week, heads.filter((one) => one.updatedAt < midnight && one.updatedAt >= midnight - 7 * DAY)],
    [words.earlier, heads.filter((one) => one.updatedAt < midnight - 7 * DAY)],
  ];
  return groups.filter(([, some]) => some.length);
}

function List() {
  const words = useWords();
  const all = useStore(chats, (value) => value);
  const route = useRoute();
  const heads = archive.listed(all);
  if (!heads.length) {
    return <p className="list-empty">{all.query.trim() ? words.nothingFound : words.noConversations}</p>;
  }
  return (
    <div className="list">
      {aged(heads, words).map(([age, some]) => (
        <section key={age} aria-label={age}>
          <h2>{age}</h2>
          <ul>
            {some.map((head) => (
              <Entry key={head.id} head={head} current={route.view === "chat" && route.id === head.id} />
            ))}
          </ul>
        </section>
      ))}
    </div>
  );
}

function Entry({ head, current }: { head: Head; current: boolean }) {
  const words = useWords();
  const [mode, setMode] = useState<"plain" | "menu" | "rename">("plain");
  const running = useStore(answers, (value) => Boolean(value.running[head.id]));
  const title = head.title || words.untitled;
  if (mode === "rename") return <li><Rename head={head} done={() => setMode("plain")} /></li>;
  return (
    <li className={current ? "current" : undefined}>
      <div className="entry">
        <a href={`#/c/${head.id}`} aria-current={current ? "page" : undefined} title={title}
          onClick={() => layout.set({ menu: false })}>
          {running && <span className="pulse" aria-hidden="true" />}{title}
        </a>
        <IconButton icon="more" label={words.more(title)} aria-expanded={mode === "menu"}
          onClick={() => setMode(mode === "menu" ? "plain" : "menu")} />
      </div>
      {mode === "menu" && (
        <div className="entry-actions">
          <button type="button" onClick={() => setMode("rename")}>{words.rename}</button>
          <button type="button" onClick={() => void exportTo(`${fileName(title)}.json`, head.id)}>{words.exportOne}</button>
          <button type="button" className="danger" onClick={() => layout.set({ removing: { id: head.id } })}>{words.remove}</button>
        </div>
      )}
    </li>
  );
}

function Rename({ head, done }: { head: Head; done: () => void }) {
  const words = useWords();
  const [title, setTitle] = useState(head.title);
  const save = () => {
    if (title.trim() && title !== head.title) void archive.rename(head.id, title);
    done();
  };
  return (
    <form className="rename" onSubmit={(event) => { event.preventDefault(); save(); }}>
      <input autoFocus value={title} maxLength={200} aria-label={words.title}
        onChange={(event) => setTitle(event.target.value)} onBlur={save}
        onKeyDown={(event) => {
          if (event.key !== "Escape") return;
          event.preventDefault();
          done();
        }} />
    </form>
  );
}

function fileName(title: string): string {
  return title.replace(/[\\/:*?"<>|\u0000-\u001f]+/g, " ").trim().slice(0, 60) || "conversation";
}

export async function exportTo(name: string, id?: string): Promise<void> {
  download(name, await archive.exported(id));
}

export async function importFrom(file: File, words: Words): Promise<void> {
  try {
    if (file.size > MAX_FILE) throw new ImportError("format");
    const number = await archive.imported(await file.text());
    layout.set({ notice: words.imported(number) });
  } catch (error) {
    const reason = error instanceof ImportError ? error.reason : "json";
    layout.set({ notice: words.importProblem[reason] });
  }
}

function Footer() {
  const words = useWords();
  const chosen = useStore(preferences, (value) => value);
  const dark = chosen.theme === "dark" ||
    (chosen.theme === "system" && matchMedia("(prefers-color-scheme: dark)").matches);
  return (
    <footer>
      <MemoryStrip />
      <div className="footer-row">
        <IconButton icon={dark ? "sun" : "moon"} label={dark ? words.themeLight : words.themeDark}
          onClick={() => preferences.set({ theme: dark ? "light" : "dark" })} />
        <button type="button" className="icon-button text" lang={chosen.language === "en" ? "zh-CN" : "en"}
          onClick={() => preferences.set({ language: chosen.language === "en" ? "zh" : "en" })}>
          {chosen.language === "en" ? "中文" : "English"}
        </button>
        <IconButton icon="keys" label={words.shortcuts} onClick={() => layout.set({ help: true })} />
        <IconButton icon="sliders" label={words.settings}
          onClick={() => layout.set({ settings: true, menu: false })} />
      </div>
    </footer>
  );
}
