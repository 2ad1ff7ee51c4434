/** Finds a Chromium that the system brought, and opens pages in it against the mock server. */

import { accessSync, constants } from "node:fs";
import { delimiter, join } from "node:path";
import { type Browser, type BrowserContext, chromium, type Page } from "playwright-core";
// @ts-expect-error plain JavaScript without types
import { startMock } from "../../mock/serve.mjs";

export const CHROMIUM = find();

function find(): string | undefined {
  if (process.env.CHROMIUM) return process.env.CHROMIUM;
  const names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
  for (const folder of (process.env.PATH ?? "").split(delimiter)) {
    for (const name of names) {
      try {
        accessSync(join(folder, name), constants.X_OK);
        return join(folder, name);
      } catch {
        // not here
      }
    }
  }
  return undefined;
}

if (!CHROMIUM) console.warn("skipped: no Chromium found (set CHROMIUM=/path, or install the package chromium)");

export interface Mock {
  url: string;
  state: { requests: Record<string, any>[]; aborted: number; down: boolean; busy: number };
  close(): Promise<void>;
}

export const mock = startMock as (options?: object) => Promise<Mock>;

export async function launch(): Promise<Browser> {
  // Root in a container has no user namespace to put the sandbox into.
  const args = process.getuid?.() === 0 ? ["--no-sandbox"] : [];
  return chromium.launch({ executablePath: CHROMIUM, args: [...args, "--disable-gpu"] });
}

export interface Opened {
  page: Page;
  context: BrowserContext;
  /** Addresses asked for that are not this server's. Must stay empty. */
  outside: string[];
  /** Uncaught errors, console errors and broken policies. */
  problems: string[];
}

/** A fresh profile, with everything that must not happen written down. */
export async function open(browser: Browser, url: string, options: Parameters<Browser["newContext"]>[0] = {}): Promise<Opened> {
  const context = await browser.newContext({ viewport: { width: 1280, height: 820 }, locale: "en-GB", ...options });
  const outside: string[] = [];
  const problems: string[] = [];
  await context.route("**/*", (route) => {
    const asked = route.request().url();
    if (asked.startsWith(url) || asked.startsWith("blob:")) return route.continue();
    outside.push(asked);
    return route.abort();
  });
  const page = await context.newPage();
  page.setDefaultTimeout(60_000); // a busy machine may stand still for a while
  page.on("pageerror", (error) => problems.push(String(error)));
  page.on("console", (message) => {
    if (message.type() === "error") problems.push(message.text());
  });
  await page.addInitScript(() => {
    document.addEventListener("securitypolicyviolation", (event) => {
      console.error(`policy: ${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`);
    });
  });
  await page.goto(url);
  await page.getByLabel("Message", { exact: true }).waitFor();
  return { page, context, outside, problems };
}

/** Sends a question and waits for the whole answer. */
export async function ask(page: Page, text: string): Promise<void> {
  const before = await page.locator("article.assistant").count();
  const box = page.locator("#composer");
  await box.fill(text);
  await box.press("Enter");
  await page.locator("article.assistant").nth(before).waitFor();
  await page.locator("article[aria-busy]").waitFor({ state: "detached" });
}
