/** What is asked of the page on the scripted server and on the real one alike. */

import { mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import type { Browser, Page } from "playwright-core";
import { open } from "./chromium";

const PICTURES = process.env.KT_PICTURES; // where to put screenshots; none are taken without it
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

export async function picture(page: Page, name: string): Promise<void> {
  if (!PICTURES) return;
  mkdirSync(PICTURES, { recursive: true });
  await page.screenshot({ path: join(PICTURES, `${name}.png`) });
}

/** Violations axe calls serious or critical. */
export async function axe(page: Page): Promise<string[]> {
  // Through the debugger, which the page's policy does not concern.
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => (window as any).axe.run(document, { resultTypes: ["violations"] }));
  return violations
    .filter((one: any) => one.impact === "serious" || one.impact === "critical")
    .map((one: any) => `${one.id}: ${one.nodes.map((node: any) => `${node.target} ${node.any[0]?.message ?? ""}`).join(" | ")}`);
}

/**
 * Milliseconds from the start of the navigation until keys and clicks are listened to, the best of
 * five visits, each with an empty cache; the others tell what else the machine was doing. Printed.
 */
export async function timeToInteractive(browser: Browser, url: string): Promise<number> {
  const times: number[] = [];
  for (let visit = 0; visit < 5; visit++) {
    const { page, context } = await open(browser, url);
    times.push(await page.evaluate(() => performance.getEntriesByName("interactive")[0]!.startTime));
    await context.close();
  }
  console.log(`interactive after ${times.map((time) => time.toFixed(0)).join(", ")} ms at ${url}`);
  return Math.min(...times);
}
