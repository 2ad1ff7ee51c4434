// Which files of web/ the built page depends on, and one hash over all of them. The Python test
// suite computes the same (tests/python/test_web.py), so the two descriptions must agree:
// sha256 over "PATH\0SHA256-OF-CONTENT\n" for each file, sorted by path, paths with "/".
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

const FILES = ["index.html", "package.json", "package-lock.json", "tsconfig.json", "vite.config.ts"];
const FOLDERS = ["public", "scripts", "src"];

export const sha256 = (data) => createHash("sha256").update(data).digest("hex");

export function filesBelow(root, folder) {
  return readdirSync(join(root, folder), { withFileTypes: true }).flatMap((entry) => {
    const path = folder ? `${folder}/${entry.name}` : entry.name;
    return entry.isDirectory() ? filesBelow(root, path) : [path];
  });
}

export function sourceHash(root) {
  const paths = [...FILES, ...FOLDERS.flatMap((folder) => filesBelow(root, folder))];
  // By UTF-16 unit, which for these names is the order of Python's sorted().
  paths.sort((a, b) => (a < b ? -1 : 1));
  return sha256(paths.map((path) => `${path}\0${sha256(readFileSync(join(root, path)))}\n`).join(""));
}
