import { useEffect } from "react";
import { useWords } from "../i18n/words";
import { PlacementView } from "../placement/PlacementView";
import * as archive from "../state/chats";
import { chats } from "../state/chats";
import { preferences } from "../state/preferences";
import { server } from "../state/server";
import { useStore } from "../state/store";
import { Announcer } from "./Announcer";
import { Banner } from "./Banner";
import { Composer } from "./Composer";
import { Dialogs } from "./Dialogs";
import { Empty } from "./Empty";
import { IconButton } from "./IconButton";
import { focusComposer, go, layout, useNarrow, useRoute } from "./layout";
import { Settings } from "./Settings";
import { listenForKeys } from "./shortcuts";
import { Sidebar } from "./Sidebar";
import { Thread } from "./Thread";

export function App() {
  const words = useWords();
  const narrow = useNarrow();
  const route = useRoute();
  const { menu, settings } = useStore(layout, (value) => value);
  const ready = useStore(chats, (value) => value.ready);

  useEffect(() => {
    performance.mark("interactive"); // keys and clicks are listened to from here on
    return listenForKeys();
  }, []);
  useLooks();

  const wanted = route.view === "chat" ? route.id : undefined;
  const gone = useStore(chats, (value) => wanted != null && value.current === null); // in another tab
  useEffect(() => {
    if (!ready || wanted === undefined) return;
    void archive.show(wanted).then((known) => {
      if (!known) go("#/");
    });
  }, [ready, wanted, gone]);

  // A conversation begun on the empty page gets its address with the first question.
  const current = useStore(chats, (value) => value.current);
  const begun = useStore(chats, (value) =>
    Boolean(value.current && Object.keys(value.open[value.current]?.messages ?? {}).length));
  useEffect(() => {
    if (current && begun && location.hash.length < 3) history.replaceState(null, "", `#/c/${current}`);
    if (current && begun) dispatchEvent(new HashChangeEvent("hashchange"));
  }, [current, begun]);

  return (
    <>
      <a className="skip" href="#composer" onClick={(event) => { event.preventDefault(); focusComposer(); }}>
        {words.skip}
      </a>
      <div className={`page ${settings && !narrow ? "with-settings" : ""}`}>
        <Sidebar />
        <main inert={narrow && (menu || settings)}>
          <TopBar />
          <Banner />
          {route.view === "placement" ? (
            <PlacementView />
          ) : <Chat />}
        </main>
        {settings && <Settings />}
      </div>
      <Dialogs />
      <Announcer />
    </>
  );
}

function Chat() {
  const conversation = useStore(chats, (value) => (value.current ? value.open[value.current] : undefined));
  return (
    <>
      {conversation?.head ? <Thread key={conversation.id} conversation={conversation} /> : <Empty />}
      <Composer />
    </>
  );
}

function TopBar() {
  const words = useWords();
  const narrow = useNarrow();
  const route = useRoute();
  const settings = useStore(layout, (value) => value.settings);
  const title = useStore(chats, (value) => (value.current ? value.open[value.current]?.title : undefined));
  const asking = useStore(server, (value) => value.state === "asking");
  const placement = route.view === "placement";
  const shown = placement ? words.placement : title || (asking ? words.asking : words.newChat);
  useEffect(() => {
    document.title = `${shown} – KTransformers`;
  }, [shown]);
  return (
    <header className="top">
      {narrow && (
        <IconButton icon="menu" label={words.menu} onClick={() => layout.set({ menu: true })} />
      )}
      <h1>{shown}</h1>
      {narrow && !placement && (
        <IconButton icon="plus" label={words.newChat} onClick={() => { go("#/"); focusComposer(); }} />
      )}
      <IconButton icon="layers" label={placement ? words.backToChat : words.placement} aria-pressed={placement}
        onClick={() => {
          const { current } = chats.get();
          go(placement ? (current ? `#/c/${current}` : "#/") : "#/placement");
        }} />
      <IconButton icon="sliders" label={words.settings} aria-expanded={settings}
        onClick={() => layout.set({ settings: !settings })} />
    </header>
  );
}

/** The document follows the choice of theme and language. */
function useLooks(): void {
  const { theme, language } = useStore(preferences, (value) => value);
  useEffect(() => {
    const { dataset } = document.documentElement;
    if (theme === "system") delete dataset.theme;
    else dataset.theme = theme;
    document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  }, [theme, language]);
}
