/**
 * How fast the CPU kernels are on their own: no device, no scheduling, only calls
 * of `project`, `pack` and `sum` from worker threads on one shared memory.
 *
 *   node bench/cpu-kernels.mjs [--threads N] [--rounds N] [--json FILE]
 *
 * Two questions, each asked for one thread and for all:
 * - GEMM: a 1024 x 1024 x 1024 product, in GFLOP/s, with the weights packed
 *   beforehand and with packing included.
 * - Decode: a few rows through matrices that together are far larger than any
 *   last-level cache, in GB/s of weights read, beside a plain streaming sum of
 *   float32 over the same memory.
 * Beyond a few rows a product is bound by arithmetic, not by reading, so decode is
 * also shown as a share of its roof: the sum's rate, or the rate at which the GEMM's
 * arithmetic could take in weights, whichever is less.
 * What is compared runs interleaved, round by round, so that a slow moment of the
 * machine hits all alike. Tables show medians over the rounds (the best round in
 * brackets); --json keeps every sample.
 */

import { writeFile } from "node:fs/promises";
import os from "node:os";
import { parseArgs } from "node:util";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import {
  ACTIVATION_CODE,
  compileKernels,
  DTYPE_CODE,
  instantiateKernels,
  MAXIMUM_PAGES,
} from "../dist/src/execution/cpu/kernels.js";
import { printTable } from "./print-table.mjs";

const MIB = 2 ** 20;
const DTYPES = ["float32", "bfloat16", "float16"];
const GEMM = { rows: 1024, inputs: 1024, outputs: 1024 };
const DECODE_ROWS = [1, 2, 4, 8];
/** Of each decode matrix; outputs follow from MATRIX_BYTES. */
const DECODE_INPUTS = 2048;
const MATRIX_BYTES = 16 * MIB;
const MATRICES = 10;
/** Five times the 32 MiB of a usual last-level cache: a cycle over it never meets a line it read before. */
const WEIGHT_BYTES = MATRICES * MATRIX_BYTES;
/** Passes over the memory, or products, before samples are kept: by then the optimising compiler is done. */
const WARM_UP = 3;

// ---------------------------------------------------------------------------
// Memory map

const WEIGHTS = MIB;
/** A little more than WEIGHT_BYTES, because a packed matrix may be larger than its source. */
const SOURCE = WEIGHTS + WEIGHT_BYTES + MIB;
const INPUT = SOURCE + MATRIX_BYTES;
const OUTPUT = INPUT + 4 * GEMM.rows * Math.max(GEMM.inputs, DECODE_INPUTS);
const SCRATCH = OUTPUT + 16 * MIB;
const endOfMemory = (threads) => SCRATCH + threads * MIB;

// ---------------------------------------------------------------------------
// Jobs: each runs its share, thread `index` of `count`

const JOBS = {
  /** Random sources and inputs. For one thread. */
  fill(kernels, { dtype }) {
    const elements = MATRIX_BYTES / bytesOf(dtype);
    kernels.fillUniform(SOURCE, DTYPE_CODE[dtype], 0, elements, 2, 0.05);
    kernels.fillUniform(INPUT, DTYPE_CODE.float32, 0, GEMM.rows * DECODE_INPUTS, 3, 1);
  },

  sum(kernels, _, index, count) {
    const share = WEIGHT_BYTES / count;
    kernels.sum(WEIGHTS + index * share, share);
  },

  pack(kernels, { dtype, inputs, matrices, outputs }, index, count) {
    const share = outputs / count;
    const source = SOURCE + index * share * inputs * bytesOf(dtype);
    const code = DTYPE_CODE[dtype];
    const matrixBytes = kernels.packedBytes(code, outputs, inputs, 0);
    for (let m = 0; m < matrices; m++) {
      const dst = WEIGHTS + m * matrixBytes;
      kernels.pack(dst, code, outputs, inputs, 0, 0, index * share, share, source, inputs, 1);
    }
  },

  project(kernels, { dtype, rows, inputs, matrices, outputs }, index, count) {
    const code = DTYPE_CODE[dtype];
    const share = Math.ceil(outputs / kernels.panelOutputs(0) / count);
    const matrixBytes = kernels.packedBytes(code, outputs, inputs, 0);
    const tile = kernels.maxTileRows();
    const scratch = SCRATCH + index * MIB;
    for (let m = 0; m < matrices; m++) {
      for (let row = 0; row < rows; row += tile) {
        kernels.project(
          INPUT + 4 * row * inputs,
          inputs,
          0,
          0,
          Math.min(tile, rows - row),
          WEIGHTS + m * matrixBytes,
          code,
          inputs,
          outputs,
          0,
          index * share,
          share,
          0,
          0,
          ACTIVATION_CODE.none,
          0,
          0,
          OUTPUT + 4 * row * outputs,
          outputs,
          scratch,
        );
      }
    }
  },
};

function bytesOf(dtype) {
  return dtype === "float32" ? 4 : 2;
}

// ---------------------------------------------------------------------------
// Threads

class Pool {
  #workers;
  #memory;

  constructor(module, memory, count) {
    this.#memory = memory;
    this.#workers = Array.from(
      { length: count },
      () => new Worker(new URL(import.meta.url), { workerData: { module, memory } }),
    );
  }

  /** Runs jobs on one thread, with zeros where weights will be packed, as `pack` wants it. */
  async prepare(jobs) {
    new Uint8Array(this.#memory.buffer, WEIGHTS, SOURCE - WEIGHTS).fill(0);
    await this.time(1, jobs);
  }

  /** Milliseconds that a list of jobs takes on the first `count` threads, with a barrier after each job. */
  async time(count, jobs) {
    const workers = this.#workers.slice(0, count);
    const times = await Promise.all(
      workers.map(
        (worker, index) =>
          new Promise((resolve, reject) => {
            worker.once("message", resolve);
            worker.once("error", reject);
            worker.postMessage({ jobs, index, count });
          }),
      ),
    );
    for (const worker of workers) worker.removeAllListeners("error");
    return Math.max(...times);
  }

  async close() {
    await Promise.all(this.#workers.map((worker) => worker.terminate()));
  }
}

/** Bytes 0 to 7 of the memory: arrivals at the barrier, and its generation. */
function barrier(control, count) {
  const generation = Atomics.load(control, 1);
  if (Atomics.add(control, 0, 1) === count - 1) {
    Atomics.store(control, 0, 0);
    Atomics.add(control, 1, 1);
    return;
  }
  // Spinning: what is timed lasts milliseconds, and a sleeping thread would wake late.
  while (Atomics.load(control, 1) === generation);
}

function serve() {
  const { module, memory } = workerData;
  const kernels = instantiateKernels(module, memory);
  const control = new Int32Array(memory.buffer, 0, 2);
  parentPort.on("message", ({ jobs, index, count }) => {
    barrier(control, count);
    const start = performance.now();
    for (const job of jobs) {
      JOBS[job.name](kernels, job, index, count);
      barrier(control, count);
    }
    parentPort.postMessage(performance.now() - start);
  });
}

// ---------------------------------------------------------------------------
// Measurements

/** Runs the cases in turn, `rounds` times; keeps work / time of every run. */
async function measure(pool, cases, rounds) {
  for (const c of cases) c.samples = [];
  for (let round = -WARM_UP; round < rounds; round++) {
    for (const c of cases) {
      const milliseconds = await pool.time(c.threads, c.jobs);
      if (round >= 0) c.samples.push(c.work / milliseconds / 1e6);
    }
  }
}

function median(samples) {
  const sorted = [...samples].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

async function gemm(pool, threads, rounds, dtype) {
  const work = 2 * GEMM.rows * GEMM.inputs * GEMM.outputs;
  const shape = { dtype, matrices: 1, ...GEMM };
  const pack = { name: "pack", ...shape };
  const project = { name: "project", ...shape };
  const cases = threads.flatMap((count) =>
    [false, true].map((packing) => ({
      what: "gemm",
      dtype,
      threads: count,
      packing,
      work,
      jobs: packing ? [pack, project] : [project],
    })),
  );
  await pool.prepare([{ name: "fill", dtype }, pack]);
  await measure(pool, cases, rounds);
  return cases;
}

async function decode(pool, threads, rounds, dtype) {
  const outputs = MATRIX_BYTES / bytesOf(dtype) / DECODE_INPUTS;
  const shape = { dtype, inputs: DECODE_INPUTS, outputs, matrices: MATRICES };
  const cases = threads.flatMap((count) => [
    { what: "sum", dtype, threads: count, work: WEIGHT_BYTES, jobs: [{ name: "sum" }] },
    ...DECODE_ROWS.map((rows) => ({
      what: "decode",
      dtype,
      threads: count,
      rows,
      work: WEIGHT_BYTES,
      jobs: [{ name: "project", ...shape, rows }],
    })),
  ]);
  await pool.prepare([
    { name: "fill", dtype },
    { name: "pack", ...shape },
  ]);
  await measure(pool, cases, rounds);
  return cases;
}

// ---------------------------------------------------------------------------
// Report

const cell = (samples) => `${median(samples).toFixed(1)} (${Math.max(...samples).toFixed(1)})`;

function printGemm(cases, threads) {
  console.log("\nGEMM 1024 x 1024 x 1024, GFLOP/s");
  const rows = DTYPES.flatMap((dtype) =>
    [false, true].map((packing) => {
      const figures = threads.map((count) =>
        cases.find((c) => c.dtype === dtype && c.packing === packing && c.threads === count),
      );
      const [one, all] = [figures[0], figures.at(-1)].map((c) => median(c.samples));
      return [
        dtype,
        packing ? "with packing" : "packed before",
        ...figures.map((c) => cell(c.samples)),
        `${(all / one).toFixed(2)}x`,
      ];
    }),
  );
  printTable(["weights", "", ...threads.map((n) => `${n} thread(s)`), "gain"], rows);
}

function printDecode(cases, gemmCases, threads) {
  console.log(`\nDecode over ${WEIGHT_BYTES / MIB} MiB, GB/s of weights; share of sum, of roof`);
  const rows = DTYPES.flatMap((dtype) =>
    [undefined, ...DECODE_ROWS].map((count) => {
      const figures = threads.flatMap((n) => {
        const isMine = (c) => c.dtype === dtype && c.threads === n;
        const it = cases.find((c) => isMine(c) && c.rows === count);
        if (count === undefined) return [cell(it.samples), "", ""];
        const rate = median(it.samples);
        const sum = median(cases.find((c) => isMine(c) && c.what === "sum").samples);
        const flops = median(gemmCases.find((c) => isMine(c) && !c.packing).samples);
        const roof = Math.min(sum, (flops * bytesOf(dtype)) / (2 * count));
        return [cell(it.samples), percent(rate / sum), percent(rate / roof)];
      });
      return [dtype, count === undefined ? "sum" : `${count} row(s)`, ...figures];
    }),
  );
  printTable(["weights", "", ...threads.flatMap((n) => [`${n} thread(s)`, "sum", "roof"])], rows);
}

const percent = (share) => `${Math.round(100 * share)}%`;

async function main() {
  const { values } = parseArgs({
    options: {
      threads: { type: "string", default: String(os.availableParallelism()) },
      rounds: { type: "string", default: "9" },
      json: { type: "string" },
    },
  });
  const most = Number(values.threads);
  const threads = most > 1 ? [1, most] : [1];
  const rounds = Number(values.rounds);
  const { module, variant } = await compileKernels();
  const pages = Math.ceil(endOfMemory(most) / 65536);
  const memory = new WebAssembly.Memory({ initial: pages, maximum: MAXIMUM_PAGES, shared: true });
  const pool = new Pool(module, memory, most);
  const cpu = os.cpus()[0]?.model ?? "unknown";
  console.log(`Node ${process.versions.node}, kernels ${variant}, ${cpu}`);

  const gemmCases = [];
  const decodeCases = [];
  for (const dtype of DTYPES) gemmCases.push(...(await gemm(pool, threads, rounds, dtype)));
  for (const dtype of DTYPES) decodeCases.push(...(await decode(pool, threads, rounds, dtype)));
  await pool.close();

  printGemm(gemmCases, threads);
  printDecode(decodeCases, gemmCases, threads);
  if (values.json === undefined) return;
  const report = {
    node: process.versions.node,
    variant,
    cpu,
    date: new Date().toISOString(),
    cases: [...gemmCases, ...decodeCases].map(({ jobs, work, samples, ...c }) => ({
      ...c,
      unit: c.what === "gemm" ? "GFLOP/s" : "GB/s",
      median: median(samples),
      samples,
    })),
  };
  await writeFile(values.json, `${JSON.stringify(report, undefined, 2)}\n`);
}

if (isMainThread) await main();
else serve();
