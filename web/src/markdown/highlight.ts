/** highlight.js through lowlight, which gives a tree; loaded with the first block of a language. */

import { common, createLowlight } from "lowlight";

export type Node = string | { classes: string; children: Node[] };
export type Highlight = (language: string, text: string) => Node[] | null;

const lowlight = createLowlight(common);
lowlight.registerAlias({ bash: ["console", "shell-session"], cpp: ["cuda", "cu"], python: ["python3"] });

interface TreeNode {
  type: string;
  value?: string;
  properties?: { className?: unknown };
  children?: TreeNode[];
}

/** null when the language is unknown. */
export const highlight: Highlight = (language, text) =>
  lowlight.registered(language)
    ? convert(lowlight.highlight(language, text).children as TreeNode[])
    : null;

function convert(tree: TreeNode[]): Node[] {
  return tree.map((node) => {
    if (node.type === "text") return node.value ?? "";
    const names = node.properties?.className;
    return { classes: Array.isArray(names) ? names.join(" ") : "", children: convert(node.children ?? []) };
  });
}
