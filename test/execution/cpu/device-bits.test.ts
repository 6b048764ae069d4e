/**
 * The promise of bits: a step's output is the same to the last bit however it is
 * run. The inputs have skewed routing and shapes that do not divide evenly.
 */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { CpuDevice } from "../../../src/execution/cpu/device.ts";
import type { ComputeBudgets } from "../../../src/execution/device.ts";
import { pick, randomFor } from "../../support/seed.ts";
import { Step, type StepSizes, withDevice } from "./harness.ts";

const SIZES: StepSizes = { experts: 13, topK: 3, hidden: 72, intermediate: 100, capacity: 300 };
const BATCHES = [300, 1, 17, 0, 299];

function streamsOf(device: CpuDevice, count: number) {
  return Array.from({ length: count }, (_, i) =>
    device.createStream({ group: i % 8, priority: i % 2 }),
  );
}

/** The outputs of all batches, one after the other. */
async function outputs(
  device: CpuDevice,
  sizes: StepSizes,
  { streams = 1, graph = false }: { streams?: number; graph?: boolean } = {},
): Promise<Uint32Array> {
  const step = await Step.create(device, sizes, 11);
  const random = randomFor(`bits ${sizes.dtype}`);
  const lanes = streamsOf(device, streams);
  const captured =
    graph && device.capture(lanes[0] as (typeof lanes)[0], () => step.enqueue(lanes));
  const parts: number[] = [];
  for (const tokens of BATCHES) {
    step.fill(random, tokens);
    if (captured) await captured.launch();
    else {
      step.enqueue(lanes);
      await device.synchronize();
    }
    parts.push(...new Uint32Array((await step.result(tokens)).buffer));
  }
  return Uint32Array.from(parts);
}

describe("the same bits", () => {
  for (const dtype of ["float32", "bfloat16", "float16"] as const) {
    it(`from any number of streams and workers, eagerly and replayed: ${dtype}`, async () => {
      const sizes = { ...SIZES, dtype };
      const want = await withDevice(1, (device) => outputs(device, sizes));
      assert.ok(want.some((bits) => bits !== 0));
      for (const threads of [1, 2, 3]) {
        await withDevice(threads, async (device) => {
          for (const streams of [1, 3, 8]) {
            for (const graph of [false, true]) {
              const got = await outputs(device, sizes, { streams, graph });
              assert.deepEqual(got, want, `${threads} threads, ${streams} streams, graph ${graph}`);
            }
          }
        });
      }
    });
  }

  it("from any compute budgets, and budgets may change between launches in flight", async () => {
    const want = await withDevice(1, (device) => outputs(device, SIZES));
    const random = randomFor("budgets");
    await withDevice(3, async (device) => {
      const budgets: ComputeBudgets[] = [
        { realisation: "shared", units: [2, 0.5, 0.5] },
        { realisation: "shared", units: [0, 0, 3] },
        { realisation: "partitioned", units: [1, 1, 0.5, 0.25] },
        { realisation: "partitioned", units: [2.5, 0.5] },
        { realisation: "partitioned", units: [] },
        { realisation: "partitioned", units: [0, 0, 0, 0.0625] },
      ];
      for (const each of budgets) {
        device.setComputeBudgets(each);
        assert.deepEqual(await outputs(device, SIZES, { streams: 8, graph: true }), want);
      }
      const step = await Step.create(device, SIZES, 11);
      step.fill(randomFor(`bits ${undefined}`), BATCHES[0] as number);
      const lanes = streamsOf(device, 5);
      const graph = device.capture(lanes[0] as (typeof lanes)[0], () => step.enqueue(lanes));
      const launches: Promise<void>[] = [];
      for (let i = 0; i < 40; i++) {
        device.setComputeBudgets(pick(random, budgets));
        launches.push(graph.launch());
      }
      await Promise.all(launches);
      const got = new Uint32Array((await step.result(BATCHES[0] as number)).buffer);
      assert.deepEqual(got, want.subarray(0, got.length));
    });
  });
});
