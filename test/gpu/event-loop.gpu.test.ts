/**
 * What is left of the event loop while the GPU works for long: all of it, but for writes that have to wait until the
 * driver has read their source (transfers.ts says which).
 */

import assert from "node:assert/strict";
import { setImmediate as turn } from "node:timers/promises";
import { openDriver } from "../../src/execution/cuda/driver/native-driver.ts";
import { LARGE_WRITE_BYTES, SMALL_WRITE_BYTES } from "../../src/execution/cuda/transfers.ts";
import type { Device, Graph } from "../../src/execution/device.ts";
import { gpuTest } from "./gpu.ts";

/** Rows, and their width: a product of a quarter of a millisecond on an H100. */
const WIDTH = 4096;
/** A tenth of a second together, so that the garbage collector's pauses are short beside them. */
const PRODUCTS = 512;
const LONG_MS = 40;
/** Share of a step that a turn of the event loop may take at most. */
const MOST_OF_A_STEP = 1 / 4;

interface Seen {
  /** Of the event loop. */
  readonly turns: number;
  readonly longestMs: number;
  readonly totalMs: number;
}

/** Counts turns of the event loop until the work is done. */
async function watched(work: () => Promise<void>): Promise<Seen> {
  const start = performance.now();
  let [turns, longestMs, last] = [0, 0, start];
  const look = (): void => {
    const now = performance.now();
    longestMs = Math.max(longestMs, now - last);
    last = now;
  };
  let next = setImmediate(function count() {
    turns++;
    look();
    next = setImmediate(count);
  });
  try {
    await work();
  } finally {
    clearImmediate(next);
  }
  look();
  return { turns, longestMs, totalMs: last - start };
}

/** Runs `body` with a graph of products that take long. */
async function withLongStep(device: Device, body: (graph: Graph) => Promise<void>): Promise<void> {
  const sizes = { count: 1, inputs: WIDTH, outputs: WIDTH } as const;
  const types = { dtype: "bfloat16", input: "bfloat16", output: "rows" } as const;
  using projection = device.createProjection(
    { ...sizes, ...types, gated: false, bias: false },
    "long",
  );
  await device.fillUniform(projection, 1, 0.1);
  const bytes = WIDTH * device.rowLayout(WIDTH, "bfloat16").pitch * 2;
  using input = device.allocate(bytes, "input");
  using output = device.allocate(bytes, "output");
  using tokens = device.allocate(4, "tokens");
  device.write(tokens, Int32Array.of(WIDTH));
  using stream = device.createStream({ group: 0, priority: 0 });
  using graph = device.capture(stream, () => {
    for (let i = 0; i < PRODUCTS; i++) {
      stream.enqueue({
        kind: "project",
        projection,
        activation: { kind: "none" },
        input,
        output,
        rows: { from: "all", tokens, mostTokens: WIDTH, matrix: 0 },
      });
    }
  });
  // Whatever the first launch has to make is made.
  await graph.launch();
  await body(graph);
  await device.synchronize();
}

/** Whether the GPU that the tests use reads ordinary memory of the host by itself. */
function readsPageable(): boolean {
  const opened = openDriver();
  assert.ok("driver" in opened);
  return opened.driver.deviceFacts(0).readsPageable;
}

gpuTest("a long step leaves the event loop alone", (device, t) =>
  withLongStep(device, async (graph) => {
    const { turns, longestMs, totalMs } = await watched(() => graph.launch());
    t.diagnostic(`${turns} turns in ${totalMs.toFixed(1)} ms, the longest ${longestMs.toFixed(1)}`);
    assert.ok(totalMs > LONG_MS, `the step took ${totalMs} ms: too short to tell`);
    assert.ok(turns > 100, `${turns} turns`);
    assert.ok(longestMs < totalMs * MOST_OF_A_STEP, `a turn took ${longestMs} of ${totalMs} ms`);
  }),
);

const WRITES = [
  [SMALL_WRITE_BYTES, "never"],
  [LARGE_WRITE_BYTES, "unless the GPU reads ordinary memory"],
  [4 * LARGE_WRITE_BYTES, "always"],
] as const;

for (const [bytes, waits] of WRITES) {
  gpuTest(`a write of ${bytes} bytes during a long step may wait for it: ${waits}`, (device, t) =>
    withLongStep(device, async (graph) => {
      const mayWait = waits === "always" || (waits !== "never" && !readsPageable());
      using buffer = device.allocate(bytes, "written");
      const source = new Uint8Array(bytes).fill(1);
      // Makes the page-locked memory that it goes through.
      device.write(buffer, source);
      await device.synchronize();
      source.fill(2);
      let wroteMs = 0;
      const seen = await watched(async () => {
        const step = graph.launch();
        await turn();
        const start = performance.now();
        device.write(buffer, source);
        wroteMs = performance.now() - start;
        // It is the caller's again, whether the GPU has read it or not.
        source.fill(3);
        await step;
      });
      const { turns, longestMs, totalMs } = seen;
      t.diagnostic(
        `written in ${wroteMs.toFixed(1)} ms beside a step of ${totalMs.toFixed(1)}, ${turns} turns`,
      );
      const target = new Uint8Array(bytes);
      await device.read(buffer, target);
      assert.ok(target.every((byte) => byte === 2));
      if (mayWait) return;
      assert.ok(totalMs > LONG_MS, `the step took ${totalMs} ms: too short to tell`);
      assert.ok(turns > 100, `${turns} turns`);
      assert.ok(longestMs < totalMs * MOST_OF_A_STEP, `a turn took ${longestMs} of ${totalMs} ms`);
    }),
  );
}
