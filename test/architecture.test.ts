/**
 * The shape of the source tree: imports point one way between the planes, no
 * files import each other in a circle, every file is short and says at its head
 * what it is. The rules are checked on made-up trees too, so that they are known
 * to catch what they are for.
 *
 * Needs the sources; where there is only compiled code it is skipped.
 */

import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { describe, it } from "node:test";
import { fileURLToPath } from "node:url";

/** A part of src/: a folder, or a file directly in it without its ending. */
type Part = string;

/** What each part may import, besides itself. `types` in front: type imports only. */
const MAY_IMPORT: Readonly<Record<Part, readonly string[]>> = {
  cli: [
    "index",
    "layer",
    "data",
    "control",
    "checkpoint",
    "reference",
    "workload",
    "execution",
    "tensor",
    "errors",
  ],
  index: ["layer", "data", "control", "checkpoint", "workload", "execution", "tensor", "errors"],
  layer: ["data", "control", "checkpoint", "execution", "tensor", "errors"],
  data: ["types control/plan.ts", "execution", "tensor", "errors"],
  control: ["execution", "types tensor", "errors"],
  checkpoint: ["data", "execution", "tensor", "errors"],
  reference: ["data", "execution", "tensor", "errors"],
  workload: ["data", "execution", "tensor", "errors"],
  execution: ["tensor", "errors"],
  tensor: ["errors"],
  errors: [],
};

const MOST_LINES = 400;

interface Import {
  readonly specifier: string;
  /** Erased by the compiler. */
  readonly typeOnly: boolean;
}

/** Static imports and re-exports begin a line in formatted code; in comments something stands before them. */
const STATIC_IMPORT = /^(?:import|export)\s+(type\s)?(?:[^"';]*?\bfrom\s+)?"([^"]+)"/gm;
/** `import("...")` and `new URL("./file.ts", import.meta.url)`, by which workers are found. */
const DYNAMIC_IMPORT = /\bimport\(\s*"([^"]+)"|\bnew URL\(\s*"(\.[^"]+\.[jt]s)"/g;

function importsOf(source: string): Import[] {
  const code = source.replace(/^\s*(?:\*|\/\/|\/\*).*$/gm, "");
  return [
    ...[...code.matchAll(STATIC_IMPORT)].map(([, type, specifier = ""]) => ({
      specifier,
      typeOnly: type !== undefined,
    })),
    ...[...code.matchAll(DYNAMIC_IMPORT)].map(([, imported, located]) => ({
      specifier: imported ?? located ?? "",
      typeOnly: false,
    })),
  ];
}

/** Files by their path inside src/, with forward slashes. */
type Tree = ReadonlyMap<string, string>;

function partOf(file: string): Part {
  return (file.split("/")[0] as string).replace(/\.ts$/, "");
}

/** The file of the tree that a relative specifier means. */
function target(from: string, specifier: string): string {
  return path.posix.join(path.posix.dirname(from), specifier).replace(/\.js$/, ".ts");
}

function mayImport(from: string, to: string, typeOnly: boolean): boolean {
  if (partOf(from) === partOf(to)) return true;
  return (MAY_IMPORT[partOf(from)] ?? []).some((entry) => {
    const allowed = entry.replace(/^types /, "");
    return (allowed === entry || typeOnly) && (allowed === partOf(to) || allowed === to);
  });
}

function wrongImports(tree: Tree, packages: readonly string[]): string[] {
  const wrong: string[] = [];
  for (const [file, source] of tree) {
    if (!(partOf(file) in MAY_IMPORT)) wrong.push(`${file}: ${partOf(file)} has no rule here`);
    for (const { specifier, typeOnly } of importsOf(source)) {
      if (specifier.startsWith(".")) {
        const to = target(file, specifier);
        if (!tree.has(to)) wrong.push(`${file} imports ${specifier}, which is not there`);
        else if (!mayImport(file, to, typeOnly)) wrong.push(`${file} may not import ${to}`);
      } else if (!specifier.startsWith("node:") && !packages.includes(specifier)) {
        wrong.push(`${file} imports ${specifier}, which is no dependency`);
      }
    }
  }
  return wrong;
}

/** A circle of files that import each other when they run, or null. Type imports may go in circles. */
function importCycle(tree: Tree): string[] | null {
  const done = new Set<string>();
  const trail: string[] = [];
  const visit = (file: string): string[] | null => {
    if (trail.includes(file)) return [...trail.slice(trail.indexOf(file)), file];
    if (done.has(file)) return null;
    trail.push(file);
    for (const { specifier, typeOnly } of importsOf(tree.get(file) ?? "")) {
      const cycle = typeOnly || !specifier.startsWith(".") ? null : visit(target(file, specifier));
      if (cycle !== null) return cycle;
    }
    trail.pop();
    done.add(file);
    return null;
  };
  for (const file of tree.keys()) {
    const cycle = visit(file);
    if (cycle !== null) return cycle;
  }
  return null;
}

function badlyMade(tree: Tree): string[] {
  const bad: string[] = [];
  for (const [file, source] of tree) {
    const lines = source.trimEnd().split("\n").length;
    if (lines > MOST_LINES) bad.push(`${file} has ${lines} lines`);
    if (!/^(?:#!.*\n)?\/\*\*\s/.test(source)) bad.push(`${file} has no head comment`);
  }
  return bad;
}

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../..");
const sources = path.join(root, "src");

function readTree(): Tree {
  return new Map(
    (readdirSync(sources, { recursive: true }) as string[])
      .filter((file) => file.endsWith(".ts"))
      .map((file) => [
        file.replaceAll(path.sep, "/"),
        readFileSync(path.join(sources, file), "utf8"),
      ]),
  );
}

describe("architecture", { skip: existsSync(sources) ? false : "no src/ folder here" }, () => {
  it("imports point one way, to files and dependencies that exist", () => {
    const { dependencies } = JSON.parse(readFileSync(path.join(root, "package.json"), "utf8"));
    assert.deepEqual(wrongImports(readTree(), Object.keys(dependencies)), []);
  });

  it("has no import cycles", () => {
    assert.equal(importCycle(readTree()), null);
  });

  it("keeps files short, with a comment at their head", () => {
    assert.deepEqual(badlyMade(readTree()), []);
  });

  it("has a part of src/ for every rule", () => {
    const parts = new Set([...readTree().keys()].map(partOf));
    assert.deepEqual(new Set(Object.keys(MAY_IMPORT)), parts);
  });
});

describe("the architecture rules themselves", () => {
  const tree = (files: Record<string, string>): Tree => new Map(Object.entries(files));
  const rest = {
    "control/plan.ts": "",
    "data/router.ts": "",
    "execution/device.ts": "",
    "layer/layer.ts": "",
    "cli/main.ts": "",
    "tensor.ts": "",
  };

  it("see every form of import", () => {
    const source = [
      'import "./a.ts";',
      'import b, {\n  c,\n  type D,\n} from "./b.ts";',
      'import type { E } from "./c.ts";',
      'export * from "./d.ts";',
      'export type { F } from "./e.ts";',
      'const g = await import("./f.ts");',
      'new Worker(new URL("./g.js", import.meta.url));',
      'const wasm = new URL("./h.wasm", import.meta.url);',
      ' * import { I } from "./comment.ts";',
      '// import("./comment.ts")',
      'export const text = "not an import";',
    ].join("\n");
    const found = importsOf(source).map(({ specifier, typeOnly }) => [specifier, typeOnly]);
    assert.deepEqual(found, [
      ["./a.ts", false],
      ["./b.ts", false],
      ["./c.ts", true],
      ["./d.ts", false],
      ["./e.ts", true],
      ["./f.ts", false],
      ["./g.js", false],
    ]);
  });

  const cases: readonly [file: string, source: string, allowed: boolean][] = [
    ["cli/x.ts", 'import { a } from "../layer/layer.ts";', true],
    ["layer/x.ts", 'import { a } from "../cli/main.ts";', false],
    ["layer/x.ts", 'import { a } from "../control/plan.ts";', true],
    ["data/x.ts", 'import { a } from "../control/plan.ts";', false],
    ["data/x.ts", 'import type { A } from "../control/plan.ts";', true],
    ["data/x.ts", 'import type { A } from "../layer/layer.ts";', false],
    ["control/x.ts", 'import type { A } from "../data/router.ts";', false],
    ["control/x.ts", 'import { a } from "../tensor.ts";', false],
    ["control/x.ts", 'import type { A } from "../tensor.ts";', true],
    ["execution/cpu/x.ts", 'import { a } from "../../tensor.ts";', true],
    ["execution/cpu/x.ts", 'import type { A } from "../../data/router.ts";', false],
    ["execution/x.ts", 'new Worker(new URL("../cli/main.js", import.meta.url));', false],
    ["tensor.ts", 'import { a } from "./execution/device.ts";', false],
    ["data/x.ts", 'import { a } from "./gone.ts";', false],
    ["data/x.ts", 'import { a } from "zod";', true],
    ["data/x.ts", 'import { a } from "fast-check";', false],
    ["elsewhere/x.ts", "", false],
  ];
  for (const [file, source, allowed] of cases) {
    it(`${allowed ? "allow" : "forbid"} in ${file}: ${source || "being there"}`, () => {
      const wrong = wrongImports(tree({ ...rest, [file]: source }), ["zod"]);
      assert.equal(wrong.length === 0, allowed, wrong.join("; "));
    });
  }

  it("find cycles, but let types go in circles", () => {
    const circle = (last: string) =>
      tree({
        "a.ts": 'import { b } from "./b.ts";',
        "b.ts": 'import { c } from "./d/c.ts";',
        "d/c.ts": last,
      });
    assert.deepEqual(importCycle(circle('export * from "../a.ts";')), [
      "a.ts",
      "b.ts",
      "d/c.ts",
      "a.ts",
    ]);
    assert.equal(importCycle(circle('import type { A } from "../a.ts";')), null);
  });

  it("find long files and missing head comments", () => {
    const head = "/** What it is. */\n";
    assert.deepEqual(badlyMade(tree({ "a.ts": head, "b.ts": `#!/usr/bin/env node\n${head}` })), []);
    assert.equal(badlyMade(tree({ "a.ts": `import "x";\n${head}` })).length, 1);
    assert.equal(badlyMade(tree({ "a.ts": head + "a;\n".repeat(MOST_LINES) })).length, 1);
    assert.equal(badlyMade(tree({ "a.ts": head + "a;\n".repeat(MOST_LINES - 1) })).length, 0);
  });
});
