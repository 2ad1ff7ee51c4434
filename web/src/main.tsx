import { createRoot } from "react-dom/client";
import "./styles/base.css";
import "./styles/layout.css";
import "./styles/controls.css";
import "./styles/thread.css";
import "./styles/markdown.css";
import "./styles/placement.css";
import { start } from "./state/chats";
import { connect } from "./state/server";
import { App } from "./ui/App";
import { Broken, Guard } from "./ui/Guard";

createRoot(document.getElementById("root")!).render(
  <Guard fallback={(error) => <Broken error={error} />}><App /></Guard>,
);
void start();
void connect();
