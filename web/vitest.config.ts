import { defineConfig } from "vitest/config";
import { reporters } from "./tests/reporters.ts";

export default defineConfig({
  test: { include: ["tests/unit/**/*.test.{ts,tsx}"], environment: "node", testTimeout: 60_000, reporters: reporters("web") },
});
