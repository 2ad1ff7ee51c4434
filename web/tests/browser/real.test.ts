/** The page against the real server with a real model: what the scripted one cannot promise. */

import type { Browser } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ask, CHROMIUM, launch, open } from "./chromium";

const SERVER = process.env.KT_WEB_SERVER; // e.g. http://127.0.0.1:10002/
if (!SERVER) console.warn("skipped: KT_WEB_SERVER names no running server; `make web_test` starts one where the package is installed");

let browser: Browser;
beforeAll(async () => {
  if (CHROMIUM && SERVER) browser = await launch();
});
afterAll(() => browser?.close());

describe.skipIf(!CHROMIUM || !SERVER)("the page on the real server", () => {
  it("chats, counts, stops and shows the placement", async () => {
    const { page, outside, problems, context } = await open(browser, SERVER!);
    await page.locator(".empty strong").waitFor();
    await page.keyboard.press("Control+Comma");
    await page.getByLabel("Temperature").fill("0");
    await page.getByLabel("Max tokens").fill("24");
    await page.keyboard.press("Escape");
    await ask(page, "What is the capital of Japan?");
    expect(await page.locator("article.assistant .markdown").textContent()).toContain("Tokyo");
    expect(await page.locator(".stats").textContent()).toMatch(/tokens\/s · \d+ tokens · first after/);
    const used = Number(await page.getByRole("meter", { name: "Context" }).getAttribute("aria-valuenow"));
    expect(used).toBeGreaterThan(10);

    await page.keyboard.press("Control+Comma");
    await page.getByLabel("Max tokens").fill("2000");
    await page.keyboard.press("Escape");
    await page.locator("#composer").fill("Count from one to one thousand in words, one number per line.");
    await page.keyboard.press("Enter");
    await page.locator("article[aria-busy] .markdown").waitFor();
    await page.getByRole("button", { name: "Stop" }).click();
    await page.getByText("Stopped.").waitFor();
    // The server lets go of the answer too.
    await expect.poll(async () => (await (await fetch(new URL("health", SERVER))).json()).running).toBe(0);

    await page.getByRole("link", { name: /Placement/ }).click();
    await page.getByRole("img", { name: /^Attention\. cpu: 0–\d+$/ }).waitFor();
    await page.getByText("Running", { exact: true }).waitFor();
    expect(await page.locator(".modules").last().locator("tbody tr").count()).toBeGreaterThan(5);
    expect(outside).toEqual([]);
    expect(problems).toEqual([]);
    await context.close();
  });

  it("names a field that the server refuses", async () => {
    const { page, context } = await open(browser, SERVER!);
    await page.keyboard.press("Control+Comma");
    await page.getByRole("textbox", { name: "Tools" }).fill('[{"type":"function","function":{"name":"not a name"}}]');
    await page.keyboard.press("Escape");
    await ask(page, "hello");
    await page.getByText("The server refused the request.").waitFor();
    await page.locator(".said").getByText(/tools/).waitFor();
    await context.close();
  });
});
