/** The built page in a real Chromium, against the scripted server. */

import { readFileSync } from "node:fs";
import type { Browser, Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { axe, picture, timeToInteractive } from "./checks";
import { ask, CHROMIUM, launch, type Mock, mock, open, type Opened } from "./chromium";

let browser: Browser;
let server: Mock;
let opened: Opened;

beforeAll(async () => {
  if (!CHROMIUM) return;
  [browser, server] = await Promise.all([launch(), mock()]);
});
afterAll(async () => {
  await browser?.close();
  await server?.close();
});

/** Opens a page; what it must not have done is checked after each test. */
async function start(options: Parameters<typeof open>[2] = {}, url = server.url): Promise<Page> {
  opened = await open(browser, url, options);
  return opened.page;
}

let expected: RegExp | undefined; // console errors a test brings about on purpose

afterEach(async () => {
  if (!opened) return;
  const { outside, problems, context } = opened;
  const allowed = expected;
  expected = undefined;
  Object.assign(server.state, { down: false, busy: 0 });
  await context.close();
  expect(outside, "requests to elsewhere").toEqual([]);
  expect(problems.filter((one) => !allowed?.test(one)), "errors on the page").toEqual([]);
});

const last = (page: Page, role = "assistant") => page.locator(`article.${role}`).last();
/** In an answer, not where screen readers hear it. */
const said = (page: Page, text: string | RegExp) => page.locator("article.assistant").getByText(text);

describe.skipIf(!CHROMIUM)("the page", () => {
  it("is interactive within a second", async () => {
    await start();
    expect(await timeToInteractive(browser, server.url)).toBeLessThan(1000);
  });

  it("streams an answer with table, formula, code and figures", async () => {
    const page = await start({ colorScheme: "dark" });
    await ask(page, "Why is decoding slow?");
    const answer = last(page);
    await answer.locator(".katex").first().waitFor();
    await answer.locator(".hljs-keyword").first().waitFor();
    expect(await answer.locator("td").first().textContent()).toBe("DDR5, 2 channels");
    expect(await answer.locator(".stats").textContent()).toContain("13.8 tokens/s");
    expect(await page.getByRole("meter", { name: "Context" }).getAttribute("aria-valuemax")).toBe("32768");
    expect(await page.getByTestId("announcer").textContent()).toMatch(/^Answer finished. Reading weights/);
    expect(await page.title()).toContain("Why is decoding slow?");
    expect(await page.locator(".thread").evaluate((one) => one.scrollHeight - one.scrollTop - one.clientHeight)).toBeLessThan(60);
  });

  it("copies code", async () => {
    const page = await start({ permissions: ["clipboard-read", "clipboard-write"] });
    await ask(page, "Why is decoding slow?");
    await last(page).locator("figure.code").getByRole("button", { name: "Copy" }).click();
    expect(await page.evaluate(() => navigator.clipboard.readText())).toMatch(/^import numpy as np, time\n\ndef/);
  });

  it("stops an answer, and the server notices", async () => {
    const page = await start();
    await page.locator("#composer").fill("count slowly");
    await page.keyboard.press("Enter");
    await page.getByText(/\b5 /).first().waitFor();
    const before = server.state.aborted;
    await page.getByRole("button", { name: "Stop" }).click();
    await last(page).getByText("Stopped.").waitFor();
    await expect.poll(() => server.state.aborted).toBe(before + 1);
    const text = await last(page).locator(".markdown").textContent();
    await page.waitForTimeout(200);
    expect(await last(page).locator(".markdown").textContent()).toBe(text);
  });

  it("edits a question and regenerates an answer, keeping every version", async () => {
    const page = await start();
    await ask(page, "one");
    await ask(page, "two");
    await page.getByRole("button", { name: "Edit" }).first().click();
    const editor = page.locator(".editor textarea");
    await editor.fill("uno");
    await editor.press("Enter");
    await said(page, "You said: uno").waitFor();
    expect(await page.locator("article").count()).toBe(2);
    await page.getByRole("button", { name: "Regenerate" }).click();
    await last(page).getByText("2/2").waitFor();
    await page.locator("article.user").getByRole("button", { name: "Previous version" }).click();
    await said(page, "You said: two").waitFor();
    expect(server.state.requests.at(-1)!.messages).toEqual([{ role: "user", content: "uno" }]);

    // Deleting asks first.
    const remove = () => page.getByRole("button", { name: "Delete from here" }).last().click();
    await remove();
    await page.getByRole("dialog").getByRole("button", { name: "Cancel" }).click();
    expect(await page.locator("article").count()).toBe(4);
    await remove();
    await page.getByRole("dialog").getByRole("button", { name: "Delete", exact: true }).click();
    await expect.poll(() => page.locator("article").count()).toBe(2);
  });

  it("folds the thinking", async () => {
    const page = await start();
    await ask(page, "Which is larger, 9.9 or 9.11?");
    const fold = last(page).getByRole("button", { name: /^Thought for/ });
    expect(await fold.getAttribute("aria-expanded")).toBe("false");
    expect(await page.getByText("the whole parts are equal").count()).toBe(0);
    await fold.click();
    await page.getByText("the whole parts are equal").waitFor();
    await ask(page, "go on");
    expect(JSON.stringify(server.state.requests.at(-1))).not.toContain("whole parts");
  });

  it("shows a tool call and returns its result", async () => {
    const page = await start({ colorScheme: "light" });
    await page.keyboard.press("Control+Comma");
    await page.getByRole("textbox", { name: "Tools" }).fill(JSON.stringify([{ type: "function", function: { name: "get_weather", parameters: { type: "object" } } }]));
    await page.keyboard.press("Escape");
    await ask(page, "What is the weather in Lisbon?");
    const call = page.getByRole("region", { name: "Tool call: get_weather" });
    expect(await call.locator("pre").textContent()).toContain('"city": "Lisbon"');
    await page.getByLabel("Result of get_weather").fill('{"temperature": 18}');
    await picture(page, "web-tool-call");
    expect(await axe(page)).toEqual([]);
    await page.getByRole("button", { name: "Return to the model" }).click();
    await page.getByText("18 °C", { exact: true }).waitFor();
    expect(server.state.requests.at(-1)!.messages.slice(1)).toEqual([
      { role: "assistant", content: "I will look it up.", tool_calls: [{ id: "call_1", type: "function", function: { name: "get_weather", arguments: '{"city":"Lisbon","unit":"celsius","days":1}' } }] },
      { role: "tool", content: '{"temperature": 18}', tool_call_id: "call_1" },
    ]);
  });

  it("shows what runs where, and the queue", async () => {
    const page = await start({ colorScheme: "light", viewport: { width: 1280, height: 980 } });
    await page.getByRole("link", { name: /Placement/ }).click();
    await page.getByRole("heading", { name: "What runs where, and why" }).waitFor();
    await page.getByText("346 GiB of 512 GiB").waitFor();
    await page.getByRole("img", { name: "Routed experts. cuda:0: 3–4; cpu: 5–60" }).waitFor();
    await page.getByText("computed where they lie").first().waitFor();
    await page.getByText("3,072 of 8,192").waitFor();
    await expect.poll(() => page.locator(".figures").textContent()).toMatch(/Generated[\d.,]+ tokens\/s/);
    expect(await axe(page)).toEqual([]);
  });

  it("exports, imports, renames, searches and deletes conversations", async () => {
    const page = await start();
    await ask(page, "about Lisbon");
    await page.getByRole("button", { name: "Settings" }).first().click();
    const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "Export all" }).click()]);
    const path = await download.path();
    const exported = JSON.parse(readFileSync(path, "utf8"));
    expect(exported).toMatchObject({ format: "ktransformers-conversations", version: 1 });
    await page.getByTestId("import").setInputFiles(path);
    await page.getByText("1 conversation imported.").waitFor();
    await page.getByTestId("import").setInputFiles({ name: "x.json", mimeType: "application/json", buffer: Buffer.from("nonsense") });
    await page.getByText("This file is not JSON.").waitFor();
    await page.keyboard.press("Escape");

    const entries = page.getByRole("navigation").getByRole("listitem");
    expect(await entries.count()).toBe(2);
    await entries.first().getByRole("button", { name: /More for/ }).click();
    await entries.first().getByRole("button", { name: "Rename" }).click();
    await page.getByLabel("Title").fill("Portugal");
    await page.getByLabel("Title").press("Enter");
    await page.getByRole("link", { name: "Portugal" }).waitFor();
    await page.getByLabel("Search conversations").fill("portugal");
    await expect.poll(() => entries.count()).toBe(1);
    await page.getByLabel("Search conversations").fill("you said"); // in the text only
    await expect.poll(() => entries.count()).toBe(2);
    await page.reload();
    await page.getByRole("link", { name: "Portugal" }).waitFor();
    for (let left = 2; left > 0; left--) {
      await entries.first().getByRole("button", { name: /More for/ }).click();
      await entries.first().getByRole("button", { name: "Delete" }).click();
      await page.getByRole("dialog").getByRole("button", { name: "Delete" }).click();
      await expect.poll(() => entries.count()).toBe(left - 1);
    }
    await page.reload();
    await page.getByText("Conversations you have stay in this browser").waitFor();
  });

  it("attaches text files and refuses others", async () => {
    const page = await start();
    const files = page.getByTestId("files");
    await files.setInputFiles([
      { name: "a.png", mimeType: "image/png", buffer: Buffer.from([0x89, 0x50, 0, 0xff]) },
      { name: "notes.md", mimeType: "text/markdown", buffer: Buffer.from("# Notes\n") },
    ]);
    await page.getByLabel("Attached files").getByText("notes.md").waitFor();
    await page.getByText("a.png is not a text file.").waitFor();
    await ask(page, "summarise");
    expect(server.state.requests.at(-1)!.messages).toEqual([{ role: "user", content: "notes.md:\n```\n# Notes\n```\n\nsummarise" }]);
    await page.locator("article.user").getByText("notes.md").click();
    await page.locator("article.user pre").getByText("# Notes").waitFor();
  });

  it("sends the sampling that was chosen", async () => {
    const page = await start();
    await page.keyboard.press("Control+Comma");
    await page.getByLabel("Temperature").fill("0.3");
    await page.getByLabel("Top k").fill("40");
    await page.getByLabel("Seed").fill("-5");
    await page.getByText("From 0 to 2147483647").waitFor();
    await page.getByLabel("Stop strings").fill("END");
    await page.getByLabel("System prompt").fill("Be brief.");
    await page.getByRole("radio", { name: "Off" }).check();
    expect(await axe(page)).toEqual([]);
    await page.keyboard.press("Escape");
    await ask(page, "hello");
    const request = server.state.requests.at(-1)!;
    expect(request).toMatchObject({ temperature: 0.3, top_k: 40, stop: ["END"], chat_template_kwargs: { enable_thinking: false } });
    expect(request.messages[0]).toEqual({ role: "system", content: "Be brief." });
    for (const unset of ["seed", "top_p", "min_p", "max_tokens", "tools"]) expect(request).not.toHaveProperty(unset);
  });

  it("runs nothing that a model writes, and fetches nothing", async () => {
    const page = await start();
    await ask(page, "hostile");
    await last(page).getByText("Before <script>").waitFor();
    await last(page).locator(".formula").first().waitFor();
    await page.waitForTimeout(500);
    expect(await page.evaluate(() => (window as any).__hit)).toBeUndefined();
    const addresses = await last(page).locator("[href], [src]").evaluateAll((all) =>
      all.map((one) => one.getAttribute("href") ?? one.getAttribute("src")));
    expect(addresses).toEqual(["https://tracker.example/pixel.png?q=secret", "https://safe.example/page"]);
    expect(await last(page).locator("script, img, iframe, style, object").count()).toBe(0);
  });

  it("lets no string become HTML, whoever inserts it", async () => {
    expected = /TrustedHTML|policy: require-trusted-types-for/;
    const page = await start();
    const refused = await page.evaluate(() => {
      try {
        document.createElement("div").innerHTML = "<b>x</b>";
        return "";
      } catch (error) {
        return String(error);
      }
    });
    expect(refused).toContain("TrustedHTML");
  });

  it("waits as long as a busy server says", async () => {
    expected = /429/;
    const page = await start();
    await page.locator("#composer").fill("be busy");
    await page.keyboard.press("Enter");
    await page.getByText("The server is busy.").waitFor();
    await page.getByText(/Trying again in [12] s/).waitFor();
    await said(page, "You said: be busy").waitFor();
    expect(await page.locator("article").count()).toBe(2);
  });

  it("tells a full context, a failure inside the stream and the length limit", async () => {
    expected = /400/;
    const page = await start();
    await ask(page, "be too long");
    await page.getByText("no longer fits").waitFor();
    await ask(page, "fail inside");
    await last(page).getByText("The server had a problem.").waitFor();
    await last(page).getByText("a worker failed").waitFor();
    await ask(page, "no end");
    await page.getByText("reached the token limit").waitFor();
  });

  it("says when the server is gone, keeps the draft, and comes back by itself", async () => {
    expected = /ERR_|Failed to load/;
    const page = await start();
    await ask(page, "hello");
    server.state.down = true;
    await page.locator("#composer").fill("are you there?");
    await page.keyboard.press("Enter");
    await page.getByText("The server could not be reached.").waitFor();
    await page.getByText("The server does not answer.").waitFor();
    await page.getByRole("link", { name: /Placement/ }).click();
    await page.getByText("What runs where, and why").waitFor();
    server.state.down = false;
    await page.getByText("The server does not answer.").waitFor({ state: "detached" });
    await page.goBack();
    await page.getByRole("button", { name: "Try again" }).click();
    await said(page, "You said: are you there?").waitFor();
  });

  it("asks for the key a server wants", async () => {
    expected = /401/;
    const locked = await mock({ key: "s3cret" });
    try {
      const page = await start({}, locked.url);
      await page.getByRole("dialog", { name: "This server wants an API key" }).waitFor();
      expect(await axe(page)).toEqual([]);
      const field = page.getByRole("dialog").getByLabel("API key", { exact: true });
      await field.fill("wrong");
      await page.keyboard.press("Enter");
      await page.getByText("did not accept this key").waitFor();
      await field.fill("s3cret");
      await page.keyboard.press("Enter");
      await page.getByRole("dialog").waitFor({ state: "detached" });
      await page.reload();
      await ask(page, "hello");
      await said(page, "You said: hello").waitFor();
    } finally {
      await opened.context.close();
      await locked.close();
    }
  });

  it("can be used with the keyboard alone, the focus always in sight", async () => {
    const page = await start();
    const focused = () => page.evaluate(() => {
      const one = document.activeElement as HTMLElement;
      const style = getComputedStyle(one);
      const box = one.closest(".box") ?? one;
      const shown = style.outlineStyle !== "none" || getComputedStyle(box).boxShadow !== "none" ||
        getComputedStyle(one.nextElementSibling ?? one).outlineStyle !== "none";
      return { name: one.getAttribute("aria-label") || one.textContent?.trim() || one.id, tag: one.tagName, shown };
    });
    const toBeginning = () => page.evaluate(() => { // as after a click beside everything
      document.body.tabIndex = -1;
      document.body.focus();
      document.body.removeAttribute("tabindex");
    });
    await toBeginning();
    await page.keyboard.press("Tab");
    expect(await focused()).toMatchObject({ name: "Skip to the message box", shown: true });
    await page.keyboard.press("Enter");
    await expect.poll(async () => (await focused()).name).toBe("Message");
    await page.keyboard.type("first");
    await page.keyboard.press("Shift+Enter");
    await page.keyboard.type("second");
    await page.keyboard.press("Enter");
    await said(page, /You said: first\s+second/).waitFor();
    await page.locator("article[aria-busy]").waitFor({ state: "detached" });

    // Once around the page: every stop has a name and shows itself.
    await toBeginning();
    const seen: string[] = [];
    for (let step = 0; step < 60; step++) {
      await page.keyboard.press("Tab");
      const at = await focused();
      if (at.tag === "BODY") break;
      expect(at.name, JSON.stringify(at)).toBeTruthy();
      expect(at.shown, `focus on ${at.name}`).toBe(true);
      seen.push(at.name!);
    }
    for (const wanted of ["Settings", "Placement", "Edit", "Regenerate", "Attach text files", "Search conversations"]) {
      expect(seen.some((name) => name.startsWith(wanted)), `${wanted} among ${seen.join(", ")}`).toBe(true);
    }
    await page.keyboard.press("?");
    await page.getByRole("dialog", { name: "Keyboard shortcuts" }).waitFor();
    await page.keyboard.press("Escape");
    await page.getByRole("dialog").waitFor({ state: "detached" });
    await page.keyboard.press("Control+k");
    await expect.poll(async () => (await focused()).name).toBe("Search conversations");
    await page.keyboard.press("Control+Shift+O");
    await page.getByText("What would you like to ask?").waitFor();
    await page.keyboard.type("count slowly");
    await page.keyboard.press("Enter");
    await page.getByText(/\b3 /).first().waitFor();
    await page.keyboard.press("Escape");
    await last(page).getByText("Stopped.").waitFor();
  });

  it("fits a phone", async () => {
    const page = await start({ viewport: { width: 375, height: 740 }, hasTouch: true, isMobile: true, colorScheme: "light", deviceScaleFactor: 2 });
    await ask(page, "Why is decoding slow?");
    await last(page).locator(".katex").first().waitFor();
    await page.locator(".thread").evaluate((one) => { one.scrollTop = 0; });
    const wide = await page.evaluate(() => document.documentElement.scrollWidth);
    expect(wide).toBeLessThanOrEqual(375);
    await page.waitForTimeout(200);
    await picture(page, "web-phone-light");
    expect(await axe(page)).toEqual([]);
    await page.getByRole("button", { name: "Conversations" }).click();
    await page.getByRole("navigation").getByRole("link", { name: "Why is decoding slow?" }).waitFor();
    expect(await axe(page)).toEqual([]);
    await page.getByRole("button", { name: "Close the list" }).click();
    for (const name of ["Placement", "Settings"]) {
      await page.getByRole("button", { name }).click();
      expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBeLessThanOrEqual(375);
      await page.keyboard.press("Escape");
    }
  });

  it.each(["light", "dark"] as const)("has no serious violation that axe finds, %s", async (colorScheme) => {
    const page = await start({ colorScheme });
    expect(await axe(page)).toEqual([]);
    await ask(page, "Which is larger, 9.9 or 9.11?");
    await last(page).getByRole("button", { name: /^Thought for/ }).click();
    await ask(page, "Why is decoding slow?");
    await last(page).locator(".katex").first().waitFor();
    await last(page).locator(".hljs-keyword").first().waitFor();
    expect(await axe(page)).toEqual([]);
    if (colorScheme === "dark") {
      await page.locator("article.user").last().evaluate((one) => one.scrollIntoView());
      // Only the conversation scrolls, never the frame around it.
      expect(await page.locator(".brand").evaluate((one) => one.getBoundingClientRect().top)).toBeGreaterThan(0);
      await page.waitForTimeout(150);
      await picture(page, "web-desktop-dark");
    }
  });

  it("speaks Chinese, in both themes, and remembers", async () => {
    const page = await start({ locale: "en-GB", colorScheme: "light" });
    await page.getByRole("button", { name: "中文" }).click();
    await page.getByRole("link", { name: "新对话" }).waitFor();
    expect(await page.locator("html").getAttribute("lang")).toBe("zh-CN");
    await page.getByRole("button", { name: "深色" }).click();
    const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    expect(await ground()).toBe("rgb(18, 23, 22)");
    await page.reload();
    await page.getByLabel("消息", { exact: true }).waitFor();
    expect(await ground()).toBe("rgb(18, 23, 22)");
    expect(await axe(page)).toEqual([]);
  });

  it("begins in Chinese for a Chinese browser", async () => {
    const context = await browser.newContext({ locale: "zh-CN" });
    const page = await context.newPage();
    await page.goto(server.url);
    await page.getByLabel("消息", { exact: true }).waitFor();
    await context.close();
  });

  it("does not send while a Chinese word is being composed", async () => {
    const page = await start();
    const before = server.state.requests.length;
    const box = page.locator("#composer");
    await box.fill("nihao");
    await box.dispatchEvent("keydown", { key: "Enter", isComposing: true });
    await page.waitForTimeout(100);
    expect(server.state.requests.length).toBe(before);
    expect(await box.inputValue()).toBe("nihao");
  });

  it("keeps two tabs of one conversation together", async () => {
    const page = await start();
    await ask(page, "from the first tab");
    const other = await opened.context.newPage();
    await other.goto(page.url());
    await said(other, "You said: from the first tab").waitFor();
    await ask(other, "from the second tab");
    await said(page, "You said: from the second tab").waitFor();
    await ask(page, "back in the first");
    await other.reload();
    await said(other, "You said: back in the first").waitFor();
    expect(await other.locator("article").count()).toBe(6);

    // Gone in one tab, gone in the other, even while it is being answered there.
    await page.locator("#composer").fill("count slowly");
    await page.keyboard.press("Enter");
    await page.getByText(/\b2 /).first().waitFor();
    await other.getByRole("navigation").getByRole("button", { name: /More for/ }).click();
    await other.getByRole("navigation").getByRole("button", { name: "Delete" }).click();
    await other.getByRole("dialog").getByRole("button", { name: "Delete" }).click();
    await page.getByText("What would you like to ask?").waitFor();
    await expect.poll(() => page.getByRole("navigation").getByRole("listitem").count()).toBe(0);
    await expect.poll(() => page.url()).not.toContain("#/c/");
    await page.reload();
    await page.getByText("Conversations you have stay in this browser").waitFor();
  });

  it("answers in two conversations at once", async () => {
    const page = await start();
    await page.locator("#composer").fill("count slowly");
    await page.keyboard.press("Enter");
    await page.getByText(/\b2 /).first().waitFor();
    await page.getByRole("link", { name: "New conversation" }).click();
    await ask(page, "meanwhile");
    await said(page, "You said: meanwhile").waitFor();
    await page.getByRole("link", { name: "count slowly" }).click();
    await page.getByRole("button", { name: "Stop" }).click();
    await last(page).getByText("Stopped.").waitFor();
  });
});
