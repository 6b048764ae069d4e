/** What the tests of the report share: its modules, which are not compiled, and made-up results. */

import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { type ExampleCell, exampleResult } from "./example-result.ts";

export const folder = fileURLToPath(new URL("../../../bench/report/", import.meta.url));
export const main = path.join(folder, "main.mjs");
/** Where there is only compiled code, as on a GPU machine, there is no report to test. */
export const skip = existsSync(main) ? false : "no bench/report/ here";

// biome-ignore lint/suspicious/noExplicitAny: they have no types.
export const load = (name: string): Promise<any> => import(new URL(name, `file://${folder}`).href);

export const QWEN = "qwen3-30b-a3b";
export const at = (tokens: number, routing = "uniform", shape = QWEN) => ({
  shape,
  tokens,
  routing,
});

export async function figuresOf(cells: ExampleCell[], more: object = {}) {
  const { merge } = await load("merge.mjs");
  const { figuresOf } = await load("figures.mjs");
  return figuresOf(merge([{ ...exampleResult(), cells, ...more }]));
}

export async function barsOf(cells: ExampleCell[], more: object = {}) {
  const { barsOf } = await load("bars.mjs");
  const bars: { bar: string; met?: boolean; figure: string }[] = barsOf(
    await figuresOf(cells, more),
  );
  return (text: string) => {
    const found = bars.find(({ bar }) => bar.includes(text));
    assert.ok(found, text);
    return found;
  };
}

/** What else a report may hold: an ablation, bytes moved, counters, and routing that drifts. */
export const { device } = exampleResult();
const moved = {
  fused: { dramBytes: 2000, l2Bytes: 4000 },
  unfused: { dramBytes: 6000, l2Bytes: 8000 },
  dramRatio: 3,
  l2Ratio: 2,
};
export const BESIDE = [
  {
    command: "bench --ablation",
    device,
    results: [
      {
        preset: QWEN,
        tokens: 64,
        routing: "zipf:1",
        rungs: [
          { name: "loop", seconds: { samples: [0.024] }, energy: { available: false } },
          {
            name: "graph",
            seconds: { samples: [0.0003] },
            speedup: 80,
            deviceSeconds: { samples: [0.00029] },
            energy: { available: true, tokensPerJoule: 356 },
          },
        ],
      },
    ],
  },
  {
    format: "nexus-traffic/1",
    device,
    rows: [{ experts: 128, topK: 8, tokens: 512, ...moved, choose: moved, withTidy: moved }],
  },
  {
    format: "nexus-counters/1",
    device,
    cells: [
      {
        shape: QWEN,
        tokens: 64,
        routing: "uniform",
        kernels: [
          { kernel: "route", label: "route", us: 5.25, registers: 40 },
          {
            kernel: "project",
            label: "project, first product",
            us: 250,
            smHertz: 1.755e9,
            dramReadBytes: 8e8,
            dramWrittenBytes: 1e6,
            dramShare: 0.9563,
            tensorShare: 0.04,
          },
        ],
      },
    ],
    absent: [{ metric: "sm__x.avg", reason: 'ncu says "n/a" (route)' }],
  },
  {
    format: "nexus-drift/1",
    device,
    preset: QWEN,
    tokens: 64,
    steps: 400,
    changeEvery: 100,
    rounds: 3,
    forms: [
      {
        name: "adaptive",
        stepUs: { median: 300, p99: 400 },
        tokensPerSecond: 1000,
        afterChangeUs: { median: 50 },
        plans: 3,
        plansChanged: 1,
        captures: 2,
        joulesPerStep: 0.12,
      },
    ],
  },
];

export const close = (actual: number, expected: number) =>
  assert.ok(Math.abs(actual / expected - 1) < 1e-9, `${actual} is not ${expected}`);
