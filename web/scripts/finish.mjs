// After `vite build`: writes build.json, by which tests and server know the page is whole and of
// these sources, and refuses a page that grew over its limits.
import { readFileSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { filesBelow, sha256, sourceHash } from "./sources.mjs";

const MAX_COMPRESSED = 600_000;

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const out = process.env.KT_WEB_OUT ?? join(root, "../ktransformers/server/static");

const files = {};
let compressed = 0;
for (const path of filesBelow(out, "").filter((name) => name !== "build.json").sort()) {
  const data = readFileSync(join(out, path));
  const packed = path.endsWith(".woff2") ? data.length : gzipSync(data, { level: 9 }).length;
  files[path] = { bytes: statSync(join(out, path)).size, sha256: sha256(data) };
  compressed += packed;
}
writeFileSync(
  join(out, "build.json"),
  JSON.stringify({ sources: sourceHash(root), files }, null, 1) + "\n",
);
console.log(`${Object.keys(files).length} files, ${compressed} bytes compressed, fonts included`);
if (compressed > MAX_COMPRESSED) {
  console.error(`error: more than ${MAX_COMPRESSED} bytes compressed`);
  process.exit(1);
}
