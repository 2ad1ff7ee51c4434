import { defineConfig } from "vitest/config";
import { reporters } from "./tests/reporters.ts";

// Drives a real Chromium through playwright-core; one file at a time, they share the machine.
export default defineConfig({
  test: {
    include: ["tests/browser/**/*.test.ts"],
    environment: "node",
    reporters: reporters("browser"),
    fileParallelism: false,
    testTimeout: 240_000,
    hookTimeout: 120_000,
    expect: { poll: { timeout: 60_000 } },
  },
});
