/**
 * Nexus beside other ways to run the same layer, on the same GPU, in turn.
 *
 *   node bench/compare/main.mjs --out DIR [PART...] [--python python3] [--rounds N]
 *                               [--tokens LIST] [--routings LIST] [--peers LIST] [--without-energy]
 *                               [--pack-weights instead|beside] [--with-sorted-loop]
 *
 * `--with-sorted-loop` adds the fastest loop to the peers that `--peers` names, from 1024 tokens on, in the shapes of large experts.
 *
 * Parts: `quick` (the default: the cells that matter, about three minutes), `loops` (the claims
 * of the original system), and the name of every shape in cells.mjs for all of its cells. Writes
 * DIR/<gpu>-<date>-<part>.json after every cell, and DIR/report.md, index.html and plots at the end.
 *
 * Two processes share the GPU, this one and the peers' (bench/peers), never at the same time.
 * Every output is compared with a float64 computation of the whole batch before anything is
 * timed. NEXUS_COMMIT names the commit that is measured.
 */

import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { openDevice, openNvmlEnergy } from "../gpu/support.mjs";
import { oneOf, optionsOf, Refused } from "./options.mjs";
import { measurePart } from "./part.mjs";
import { Peers } from "./peers.mjs";

const REPORT = fileURLToPath(new URL("../report/main.mjs", import.meta.url));

try {
  const options = optionsOf(process.argv.slice(2));
  mkdirSync(options.out, { recursive: true });
  const done = await compare(options);
  const files = done.map(({ file }) => file);
  execFileSync(process.execPath, [REPORT, ...files, "--out", options.out], { stdio: "inherit" });
  process.exitCode = done.some(({ failed }) => failed) ? 1 : 0;
} catch (error) {
  if (!(error instanceof Refused)) throw error;
  console.error(error.message);
  process.exitCode = 2;
}

async function compare(options) {
  const device = await openGpu();
  const peers = new Peers(options.python);
  const folder = mkdtempSync(join(tmpdir(), "nexus-compare-"));
  let nvml;
  try {
    const hello = await peers.ask("hello");
    for (const peer of options.peers ?? []) oneOf("peer", peer, hello.peers);
    nvml = await openNvmlEnergy(hello.device.uuid);
    const bench = { device, peers, folder, nvml, hello, limits: await peers.ask("limits") };
    const done = [];
    for (const part of options.parts) done.push(await measurePart(bench, part, options));
    return done;
  } finally {
    nvml?.close();
    await peers.close();
    await device.close();
    rmSync(folder, { recursive: true, force: true });
  }
}

async function openGpu() {
  try {
    return await openDevice({ kind: "cuda" });
  } catch (error) {
    throw new Refused(error.message, { cause: error });
  }
}
