import { useEffect } from "react";
import { useWords } from "../i18n/words";
import { chats } from "../state/chats";
import { connect, server } from "../state/server";
import { useStore } from "../state/store";
import { IconButton } from "./IconButton";
import { layout } from "./layout";

/** What concerns the whole page: no server, no storage, the outcome of an import. */
export function Banner() {
  const words = useWords();
  const state = useStore(server, (value) => value.state);
  const durable = useStore(chats, (value) => value.durable);
  const saveFailed = useStore(chats, (value) => value.saveFailed);
  const notice = useStore(layout, (value) => value.notice);

  useEffect(() => {
    if (state !== "down") return;
    const timer = setInterval(() => void connect(), 3000);
    return () => clearInterval(timer);
  }, [state]);

  return (
    <div className="banners">
      {state === "down" && (
        <div className="banner bad" role="alert">
          <p><strong>{words.down}</strong> {words.downMore}</p>
          <button type="button" onClick={() => void connect()}>{words.retry}</button>
        </div>
      )}
      {!durable && <div className="banner" role="status"><p>{words.notDurable}</p></div>}
      {saveFailed && <div className="banner bad" role="alert"><p>{words.saveFailed}</p></div>}
      {notice && (
        <div className="banner" role="status">
          <p>{notice}</p>
          <IconButton icon="close" label={words.close} onClick={() => layout.set({ notice: "" })} />
        </div>
      )}
    </div>
  );
}
