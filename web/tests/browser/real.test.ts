/** The page against the real server with a real model: what the scripted one cannot promise. */

import type { Browser, Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { axe, picture, timeToInteractive } from "./checks";
import { ask, CHROMIUM, launch, open, type Opened } from "./chromium";

const SERVER = process.env.KT_WEB_SERVER ?? ""; // e.g. http://127.0.0.1:10002/
if (!SERVER) console.warn("skipped: KT_WEB_SERVER names no running server; `make web_test` starts one where the package is installed");

let browser: Browser;
let opened: Opened | undefined;
beforeAll(async () => {
  if (CHROMIUM && SERVER) browser = await launch();
});
afterAll(() => browser?.close());

let expected: RegExp | undefined; // console errors a test brings about on purpose

afterEach(async () => {
  if (!opened) return;
  const { context, outside, problems } = opened;
  const allowed = expected;
  opened = expected = undefined;
  await context.close();
  expect(outside, "requests to elsewhere").toEqual([]);
  expect(problems.filter((one) => !allowed?.test(one)), "errors on the page").toEqual([]);
});

async function start(options: Parameters<typeof open>[2] = {}): Promise<Page> {
  opened = await open(browser, SERVER, options);
  await opened.page.locator(".empty strong").waitFor(); // the model's name
  return opened.page;
}

/** Fills fields of the settings panel by their labels. */
async function set(page: Page, fields: Record<string, string>): Promise<void> {
  await page.keyboard.press("Control+Comma");
  for (const [label, text] of Object.entries(fields)) await page.getByRole("textbox", { name: label }).fill(text);
  await page.keyboard.press("Escape");
}

const health = async () => (await fetch(new URL("health", SERVER))).json() as Promise<{ running: number }>;

describe.skipIf(!CHROMIUM || !SERVER)("the page on the real server", () => {
  it("is interactive within a second", async () => {
    expect(await timeToInteractive(browser, SERVER)).toBeLessThan(1000);
  });

  it("comes with a policy that lets nothing in from elsewhere", async () => {
    const answer = await fetch(SERVER, { headers: { Accept: "text/html" } });
    const policy = answer.headers.get("content-security-policy") ?? "";
    expect(policy).toContain("default-src 'none'");
    expect(policy).toContain("frame-ancestors 'none'");
    expect(policy).toContain("trusted-types 'none'");
    expect(policy).not.toMatch(/unsafe|https?:|\*/);
    expect(answer.headers.get("x-content-type-options")).toBe("nosniff");
  });

  it("chats, counts and stops", async () => {
    const page = await start();
    await set(page, { Temperature: "0", "Max tokens": "24" });
    await ask(page, "What is the capital of Japan?");
    expect(await page.locator("article.assistant .markdown").textContent()).toContain("Tokyo");
    expect(await page.locator(".stats").textContent()).toMatch(/tokens\/s · \d+ tokens · first after/);
    const used = Number(await page.getByRole("meter", { name: "Context" }).getAttribute("aria-valuenow"));
    expect(used).toBeGreaterThan(10);

    await set(page, { "Max tokens": "2000" });
    await page.locator("#composer").fill("Write a very long story about a lighthouse, its keeper and the sea.");
    await page.keyboard.press("Enter");
    await page.locator("article[aria-busy] .markdown").waitFor();
    await page.getByRole("button", { name: "Stop" }).click();
    await page.locator("article").last().getByText("Stopped.").waitFor();
    // The server lets go of the answer too.
    await expect.poll(async () => (await health()).running).toBe(0);
    expect(await axe(page)).toEqual([]);
  });

  it("gives the same answer for the same seed", async () => {
    const page = await start();
    await set(page, { Temperature: "1", Seed: "7", "Max tokens": "16" });
    await ask(page, "Name a colour and a town.");
    await page.getByRole("button", { name: "Regenerate" }).click();
    await page.locator("article").last().getByText("2/2").waitFor();
    await page.locator("article[aria-busy]").waitFor({ state: "detached" });
    const answers = [await page.locator(".markdown").textContent()];
    await page.locator("article.assistant").getByRole("button", { name: "Previous version" }).click();
    answers.push(await page.locator(".markdown").textContent());
    expect(answers[0]!.length).toBeGreaterThan(5);
    expect(answers[0]).toBe(answers[1]);
  });

  it("shows where the model is and what the server does", async () => {
    const page = await start({ colorScheme: "light", viewport: { width: 1280, height: 980 } });
    await set(page, { Temperature: "0", "Max tokens": "4000" });
    for (const question of ["Write a very long story about a lighthouse and the sea.", "Write a very long story about a baker."]) {
      await page.locator("#composer").fill(question);
      await page.keyboard.press("Enter");
      await page.locator("article[aria-busy] .markdown").waitFor();
      await page.getByRole("link", { name: "New conversation" }).click();
    }
    await page.getByRole("link", { name: /Placement/ }).click();
    await page.getByRole("img", { name: /^Attention\. cpu: 0–\d+$/ }).waitFor();
    await expect.poll(() => page.locator(".generations tbody tr").count()).toBe(2);
    await expect.poll(() => page.locator(".figures").textContent()).toMatch(/Running2.*Generated[\d.,]+ tokens\/s/);
    const plan = page.locator(".modules").last().locator("tbody tr");
    expect(await plan.count()).toBeGreaterThan(5);
    expect(await plan.filter({ hasText: "Routed experts" }).first().textContent()).toMatch(/moe\.experts.*cpu.*q4_1.*[MG]iB/);
    // The page adds up what the server says.
    const said = (await (await fetch(new URL("placement", SERVER))).json()) as any;
    const size = `${(said.device_bytes.cpu / 2 ** 20).toFixed(said.device_bytes.cpu < 100 * 2 ** 20 ? 1 : 0)} MiB`;
    expect(await page.locator(".device-head").first().textContent()).toContain(size);
    await picture(page, "web-placement");
    expect(await axe(page)).toEqual([]);
    await page.reload(); // whoever leaves is not worked for any longer
    await expect.poll(async () => (await health()).running).toBe(0);
  });

  it("names a field that the server refuses", async () => {
    expected = /400|422/;
    const page = await start();
    await set(page, { Tools: '[{"type":"function","function":{"name":"not a name"}}]' });
    await ask(page, "hello");
    await page.getByText("The server refused the request.").waitFor();
    await page.locator(".said").getByText(/tools/).waitFor();
  });
});
