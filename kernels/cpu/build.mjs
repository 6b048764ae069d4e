/**
 * Compiles the CPU kernels twice: with relaxed SIMD, whose fused multiply-add
 * doubles the arithmetic rate, and without it for runtimes that lack it.
 *
 *   node kernels/cpu/build.mjs [--out DIR]
 *
 * Writes kernels.simd.wasm and kernels.relaxed.wasm to DIR (default: beside the
 * compiled loader, dist/src/execution/cpu). Does nothing when both are newer than
 * every source and this script.
 */

import { mkdir, readdir, rename, stat, writeFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const VARIANTS = { simd: [], relaxed: ["relaxed-simd"] };

/** 4 GiB, the most a 32-bit memory can have: an imported memory may be smaller, never larger. */
const MAXIMUM_PAGES = 65536;

const here = path.dirname(fileURLToPath(import.meta.url));
const root = path.resolve(here, "../..");
const { values } = parseArgs({ options: { out: { type: "string" } } });
const out = values.out ? path.resolve(values.out) : path.join(root, "dist/src/execution/cpu");

async function modified(file) {
  const status = await stat(file).catch(() => undefined);
  return status?.mtimeMs;
}

async function upToDate(files) {
  const names = await readdir(here);
  const sources = await Promise.all(names.map((name) => modified(path.join(here, name))));
  const newest = Math.max(...sources.filter((time) => time !== undefined));
  const outputs = await Promise.all(files.map(modified));
  return outputs.every((time) => time !== undefined && time > newest);
}

async function compile(asc, features, file) {
  // Written under another name and renamed, so that no process ever reads half a module.
  const temporary = `${file}.${process.pid}`;
  const { error, stderr } = await asc.main(
    [
      path.join(here, "index.ts"),
      "--baseDir",
      root,
      "--outFile",
      path.relative(root, temporary),
      "--optimizeLevel",
      "3",
      "--shrinkLevel",
      "0",
      "--noAssert",
      // Internal functions pass vectors, none that the host calls does.
      "--disableWarning",
      "112",
      "--runtime",
      "stub",
      "--use",
      "abort=",
      "--importMemory",
      "--sharedMemory",
      "--initialMemory",
      "1",
      "--maximumMemory",
      String(MAXIMUM_PAGES),
      ...["simd", "threads", ...features].flatMap((feature) => ["--enable", feature]),
    ],
    {
      writeFile: async (name, contents, base) => {
        await writeFile(path.resolve(base, name), contents);
      },
    },
  );
  // A warning is a conversion that may lose bits: as good as an error.
  const diagnostics = stderr.toString();
  if (error || diagnostics) throw new Error(`Compiling the CPU kernels failed.\n${diagnostics}`);
  await rename(temporary, file);
}

const files = Object.keys(VARIANTS).map((name) => path.join(out, `kernels.${name}.wasm`));
if (!(await upToDate(files))) {
  const { default: asc } = await import("assemblyscript/asc");
  await mkdir(out, { recursive: true });
  for (const [index, features] of Object.values(VARIANTS).entries()) {
    await compile(asc, features, files[index]);
  }
}
