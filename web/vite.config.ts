import react from "@vitejs/plugin-react";
import type { Plugin } from "vite";
import { defineConfig } from "vite";

/** Keeps only the woff2 files of KaTeX's fonts: every browser that runs this page reads them. */
function onlyWoff2(): Plugin {
  return {
    name: "only-woff2",
    enforce: "pre",
    transform(code, id) {
      if (!id.includes("katex") || !id.split("?")[0]!.endsWith(".css")) return null;
      return code.replace(/,\s*url\([^)]*\.(?:woff|ttf)\)\s*format\([^)]*\)/g, "");
    },
  };
}

const server = process.env.KT_SERVER ?? "http://127.0.0.1:10003";

export default defineConfig({
  base: "./",
  plugins: [onlyWoff2(), react()],
  build: {
    outDir: process.env.KT_WEB_OUT ?? "../ktransformers/server/static",
    emptyOutDir: true,
    target: "es2022",
    assetsInlineLimit: 0, // the policy allows no data: fonts
    modulePreload: { polyfill: false },
    sourcemap: false,
    chunkSizeWarningLimit: 400,
  },
  server: {
    proxy: Object.fromEntries(
      ["/v1", "/health", "/metrics", "/props", "/tokenize", "/placement"].map((p) => [p, server]),
    ),
  },
});
