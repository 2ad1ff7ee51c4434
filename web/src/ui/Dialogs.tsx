import { useId, useState } from "react";
import { useWords } from "../i18n/words";
import * as archive from "../state/chats";
import { chats } from "../state/chats";
import { removeBranch } from "../state/conversation";
import { preferences } from "../state/preferences";
import { connect, server } from "../state/server";
import { useStore } from "../state/store";
import { Dialog } from "./Dialog";
import { go, layout, readRoute } from "./layout";
import { SHORTCUTS } from "./shortcuts";

/** Whichever dialog is asked for. */
export function Dialogs() {
  const help = useStore(layout, (value) => value.help);
  const removing = useStore(layout, (value) => value.removing);
  const wantsKey = useStore(server, (value) => value.state === "key");
  return (
    <>
      {help && <Help />}
      {removing && <Remove {...removing} />}
      {wantsKey && <Key />}
    </>
  );
}

function Help() {
  const words = useWords();
  return (
    <Dialog title={words.shortcuts} close={() => layout.set({ help: false })}>
      <dl className="keys">
        {SHORTCUTS.map(({ name, keys }) => (
          <div key={name}>
            <dt>{words.shortcut[name]}</dt>
            <dd>{keys.map((key) => <kbd key={key}>{key}</kbd>)}</dd>
          </div>
        ))}
      </dl>
    </Dialog>
  );
}

function Remove({ id, message }: { id: string; message?: string }) {
  const words = useWords();
  const head = useStore(chats, (value) => value.heads.find((one) => one.id === id));
  const close = () => layout.set({ removing: null });
  return (
    <Dialog title={message ? words.removeBranch : words.remove} close={close}>
      <p>{message ? words.confirmRemoveBranch : words.confirmRemove(head?.title || words.untitled)}</p>
      <div className="buttons">
        <button type="button" autoFocus onClick={close}>{words.cancel}</button>
        <button type="button" className="danger" onClick={() => {
          close();
          if (message) {
            archive.change(id, (old) => removeBranch(old, message));
            return void archive.save(id);
          }
          const route = readRoute(location.hash);
          if (route.view === "chat" && route.id === id) go("#/");
          void archive.remove(id);
        }}>{words.remove}</button>
      </div>
    </Dialog>
  );
}

function Key() {
  const words = useWords();
  const id = useId();
  const tried = useStore(preferences, (value) => value.key);
  const [key, setKey] = useState("");
  const [busy, setBusy] = useState(false);
  const submit = async () => {
    setBusy(true);
    preferences.set({ key: key.trim() });
    await connect();
    setBusy(false);
  };
  return (
    <Dialog title={words.keyWanted} close={() => server.set({ state: "down" })}>
      <form onSubmit={(event) => { event.preventDefault(); void submit(); }}>
        <div className="field">
          <label htmlFor={id}>{words.key}</label>
          <input id={id} type="password" autoFocus autoComplete="off" value={key}
            aria-describedby={`${id}n`} onChange={(event) => setKey(event.target.value)} />
          <p className="hint" id={`${id}n`}>{words.keyNote}</p>
        </div>
        {tried && !busy && <p className="problem" role="alert">{words.keyWrong}</p>}
        <div className="buttons">
          <button type="submit" className="primary" disabled={!key.trim() || busy}>{words.connect}</button>
        </div>
      </form>
    </Dialog>
  );
}
