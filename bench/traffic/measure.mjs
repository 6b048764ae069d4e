/**
 * Bytes that routing moves, by hardware counters: Nexus's fused kernels beside the same work as
 * a chain of PyTorch operators.
 *
 *   node bench/traffic/measure.mjs [--json FILE] [--python PYTHON]
 *
 * Nsight Compute (ncu) runs Nexus itself (route.mjs) and the chain (chain.py), every kernel with
 * empty caches. So each kernel reads its inputs from device memory, also those that the kernel
 * before has just written and would find in L2; and what it writes may still be in L2 when the
 * counters are read. Bytes of device memory therefore flatter whoever has fewer kernels, and bytes
 * that L2 serves, which hardly depend on what the cache held, stand beside them.
 *
 * Two comparisons: `choose` (route against softmax, top-k, renormalise; route also notes who chose
 * whom), and the whole (route and bucket, which brings counts to the host, against the chain).
 */

import { writeFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { findNcu, profile } from "../ncu/profile.mjs";
import { printTable } from "../print-table.mjs";
import { METRICS, parseCounters, splitAtMarks, totalOf } from "./counters.mjs";

const SIZES = [
  [128, 8],
  [8, 2],
  [256, 8],
].flatMap(([experts, topK]) => [512, 4096, 16384].map((tokens) => ({ experts, topK, tokens })));

/** Each is launched once a size. */
const KERNELS = ["route", "bucket"];
/** What chain.py ends each of its two groups with. */
const isMark = (kernel) => kernel.includes("spin_kernel");
const GROUPS = 2;

const here = path.dirname(fileURLToPath(import.meta.url));
const { values: options } = parseArgs({
  options: { json: { type: "string" }, python: { type: "string", default: "python3" } },
});

/** The kernels of a program with their counters, and what it printed. */
function count(ncu, selection, command) {
  const { page, said } = profile(ncu, { metrics: METRICS, selection, command });
  return { kernels: parseCounters(page), said };
}

function profileNexus(ncu, sizes) {
  const only = ["--kernel-name", `regex:^(${KERNELS.join("|")})$`];
  const script = path.join(here, "route.mjs");
  const { kernels, said } = count(ncu, only, [process.execPath, script, ...sizes]);
  const rows = sizes.map((_, i) => {
    const launched = kernels.slice(i * KERNELS.length, (i + 1) * KERNELS.length);
    return KERNELS.map((name) => launched.find(({ kernel }) => kernel === name));
  });
  if (rows.flat().filter((each) => each !== undefined).length !== kernels.length) {
    throw new Error(`Nexus launched ${kernels.map(({ kernel }) => kernel).join(", ")}.`);
  }
  return { device: said, rows };
}

function profileChain(ncu, sizes) {
  const script = path.join(here, "chain.py");
  const command = [options.python, script, ...sizes];
  const { kernels, said } = count(ncu, ["--profile-from-start", "off"], command);
  const groups = splitAtMarks(kernels, isMark);
  if (groups.length !== GROUPS * sizes.length) {
    throw new Error(`The chain has ${groups.length} groups of kernels for ${sizes.length} sizes.`);
  }
  return { versions: said, rows: sizes.map((_, i) => groups.slice(i * GROUPS, (i + 1) * GROUPS)) };
}

function compare(fused, unfused) {
  const [ours, theirs] = [totalOf(fused), totalOf(unfused)];
  return {
    fused: ours,
    unfused: theirs,
    dramRatio: theirs.dramBytes / ours.dramBytes,
    l2Ratio: theirs.l2Bytes / ours.l2Bytes,
  };
}

function show(rows) {
  const header = ["experts/top k", "tokens", "part", "fused DRAM", "unfused", "ratio"];
  const lines = [];
  for (const { experts, topK, tokens, choose, ...whole } of rows) {
    for (const [part, it] of Object.entries({ choose, whole })) {
      const [ours, theirs] = [it.fused, it.unfused];
      lines.push([
        `${experts}/${topK}`,
        String(tokens),
        part,
        inKilobytes(ours.dramBytes),
        inKilobytes(theirs.dramBytes),
        it.dramRatio.toFixed(2),
        inKilobytes(ours.l2Bytes),
        inKilobytes(theirs.l2Bytes),
        it.l2Ratio.toFixed(2),
      ]);
    }
  }
  console.log("kB moved, and how many times as much the unfused chain moves");
  printTable([...header, "fused L2", "unfused", "ratio"], lines);
}

const inKilobytes = (bytes) => (bytes / 1e3).toFixed(1);

const { ncu, version } = findNcu();
const sizes = SIZES.map(({ experts, topK, tokens }) => `${experts}:${topK}:${tokens}`);
const nexus = profileNexus(ncu, sizes);
const chain = profileChain(ncu, sizes);
const rows = SIZES.map((size, i) => {
  const [route, bucket] = nexus.rows[i];
  const [choosing, arranging] = chain.rows[i];
  const unfused = [...choosing, ...arranging];
  return {
    ...size,
    ...compare([route, bucket], unfused),
    choose: compare([route], choosing),
  };
});
show(rows);
if (options.json !== undefined) {
  const report = {
    format: "nexus-traffic/1",
    date: new Date().toISOString(),
    commit: process.env.NEXUS_COMMIT ?? "unknown",
    device: nexus.device,
    versions: { ncu: version, node: process.version, ...chain.versions },
    rows,
  };
  writeFileSync(options.json, `${JSON.stringify(report, null, 1)}\n`);
}
