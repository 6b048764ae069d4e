/**
 * Recordings with more than one step in them, on an emulated GPU: what one step clears
 * beside its work the next one writes, and buffers come and go while work is under way.
 */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { GivenRouting } from "../../../src/data/routing.ts";
import { StepBuffers } from "../../../src/data/step-buffers.ts";
import { InvalidLogitsError } from "../../../src/errors.ts";
import type { CudaDevice } from "../../../src/execution/cuda/device.ts";
import type { ComputeBudgets, DeviceBuffer } from "../../../src/execution/device.ts";
import { MoELayer } from "../../../src/layer/moe-layer.ts";
import { recordStep, StepStreams } from "../../../src/layer/step.ts";
import {
  batch,
  gatedExperts,
  plainSpec,
  type RandomLayerParts,
  randomLayer,
} from "../../support/layers.ts";
import { between, normal, randomFor } from "../../support/seed.ts";
import { withEmulated } from "./emulator/harness.ts";

const [HIDDEN, EXPERTS, TOP_K, LANES] = [20, 6, 2, 3];
const GROUPS = { sliceOfLane: ["A", "B", "C"], priorityOfLane: [3, 2, 1] } as const;

const specOf = (dtype: "float32" | "bfloat16") =>
  plainSpec(HIDDEN, 15, EXPERTS, TOP_K, { experts: gatedExperts(HIDDEN, 15, { dtype }) });

/** A step's buffers with a batch in them, and a function that enqueues the step. */
async function prepare(
  device: CudaDevice,
  layer: MoELayer,
  { spec }: RandomLayerParts,
  hidden: Float32Array,
  given?: { readonly ids: Int32Array; readonly weights: Float32Array },
) {
  const tokens = hidden.length / HIDDEN;
  const { parts } = await layer.modules;
  const sizes = { hiddenSize: HIDDEN, experts: EXPERTS, topK: TOP_K, expertForm: spec.experts };
  const shape = { ...sizes, aggregation: "sum", rowWeights: parts.experts.rowWeights } as const;
  const buffers = new StepBuffers(device, shape, tokens);
  const streams = new StepStreams(device, GROUPS);
  device.write(buffers.tokens, Int32Array.of(tokens));
  device.writeRows(buffers.hidden, buffers.layouts.hidden, {
    dtype: "float32",
    shape: [tokens, HIDDEN],
    data: hidden,
  });
  const laneOf = Int32Array.from({ length: EXPERTS }, (_, e) => e % LANES);
  device.write(buffers.buckets.laneOf, laneOf);
  const scope = { mostTokens: tokens, outputType: "float32" } as const;
  if (given !== undefined) {
    device.write(buffers.ids, given.ids);
    device.write(buffers.weights, given.weights);
  }
  const routed = {
    ...parts,
    ...(given && { routing: new GivenRouting({ experts: EXPERTS, topK: TOP_K }), decodeTokens: 0 }),
  };
  const record = () => recordStep(streams, routed, buffers, scope);
  return { buffers, streams, record };
}

async function outputOf(device: CudaDevice, output: DeviceBuffer, tokens: number) {
  const values = new Float32Array(tokens * HIDDEN);
  await device.read(output, values);
  return values;
}

describe("recordings on an emulated GPU", () => {
  for (const [tokens, from, dtype] of [
    [3, "the router", "float32"],
    [3, "the router", "bfloat16"],
    [40, "the router", "float32"],
    [40, "the host", "float32"],
  ] as const) {
    it(`of several steps in the same buffers, ${tokens} tokens, ids from ${from}, ${dtype}`, () =>
      withEmulated(async (device, driver) => {
        const random = randomFor("emulated recordings");
        const parts = randomLayer(random, specOf(dtype));
        await using layer = new MoELayer(parts.spec, parts.tensors, { device });
        const hidden = normal(random, tokens * HIDDEN);
        const { output, routing } = await layer.forward(batch(hidden, HIDDEN), { routing: true });
        const expected = output.data;
        const given = from === "the host" ? routing : undefined;
        const made = await prepare(device, layer, parts, hidden, given);
        const { buffers, streams, record } = made;
        const thrice = () => {
          for (let i = 0; i < 3; i++) record();
        };
        const check = async () => {
          assert.deepEqual(await outputOf(device, buffers.output, tokens), expected);
          device.write(buffers.output, new Float32Array(tokens * HIDDEN));
        };
        thrice();
        await device.synchronize();
        await check();
        const graph = device.capture(streams.main, thrice);
        const captures = driver.count("instantiateGraph");
        const before = driver.launches.length;
        await graph.launch();
        await check();
        // Gate and router, or one kernel for given ids, or the gate alone where decode routes; then both of decode's products, or buckets, two products of
        // every lane and the sum. The last one tidies up along with its own work.
        const decodes = tokens <= device.properties.decodeTokens;
        const routedAlong = decodes && dtype === "bfloat16";
        const chosen = given === undefined && !routedAlong ? 2 : 1;
        assert.equal(
          [...driver.ran.keys()].some((name) => /^decode_routing/.test(name)),
          routedAlong,
        );
        const kernels = chosen + (decodes ? 2 : 1 + 2 * LANES + 1);
        assert.equal(driver.launches.length - before, 3 * kernels);
        for (let round = 0; round < 10; round++) {
          // However the others are drawn, one unit cuts every grid.
          const units = [0, 1, 2].map(() => (round === 0 ? 1 : between(random, 0, 40)));
          const budgets: ComputeBudgets = { realisation: "shared", units };
          device.setComputeBudgets(budgets);
          // The second waits for its turn, with the budgets that it was submitted with.
          const first = graph.launch();
          device.setComputeBudgets({ ...budgets, units: [] });
          await Promise.all([first, graph.launch()]);
          await check();
        }
        assert.equal(driver.count("instantiateGraph"), captures);
        // Steps of decode size have no lanes, and so no budgets.
        const followed = driver.count("setNodeLaunch") > 0;
        assert.equal(followed, !decodes);
        for (const each of [graph, streams, buffers]) each[Symbol.dispose]();
      }));
  }

  for (const dtype of ["bfloat16", "float32"] as const) {
    it(`of decoded steps side by side find the fault of either, ${dtype}`, () =>
      withEmulated(async (device) => {
        const random = randomFor("emulated faults side by side");
        const parts = randomLayer(random, specOf(dtype));
        await using layer = new MoELayer(parts.spec, parts.tensors, { device });
        const good = normal(random, 2 * HIDDEN);
        const bad = good.slice().fill(Number.NaN, HIDDEN + 3, HIDDEN + 4);
        const sound = await prepare(device, layer, parts, good);
        const faulty = await prepare(device, layer, parts, bad);
        for (let round = 0; round < 20; round++) {
          for (const { record } of round % 2 === 0 ? [sound, faulty] : [faulty, sound]) record();
          await assert.rejects(
            device.synchronize(),
            (error) => error instanceof InvalidLogitsError && error.message.includes("1"),
          );
          sound.record();
          await device.synchronize();
        }
        for (const { buffers, streams } of [sound, faulty]) {
          streams[Symbol.dispose]();
          buffers[Symbol.dispose]();
        }
      }));
  }

  it("do not feel what is freed and allocated while they run", () =>
    withEmulated(async (device) => {
      const random = randomFor("emulated churn");
      const parts = randomLayer(random, plainSpec(HIDDEN, 15, EXPERTS, TOP_K));
      await using layer = new MoELayer(parts.spec, parts.tensors, { device });
      for (let round = 0; round < 10; round++) {
        const tokens = between(random, 5, 60);
        const hidden = normal(random, tokens * HIDDEN);
        const expected = (await layer.forward(batch(hidden, HIDDEN))).output.data;
        const { buffers, streams, record } = await prepare(device, layer, parts, hidden);
        record();
        const first = device.synchronize();
        record();
        // Waits for the first, and is not on the GPU yet.
        const second = device.synchronize();
        const { byteLength } = buffers.hidden;
        for (const each of [buffers.hidden, streams]) each[Symbol.dispose]();
        const other = device.allocate(byteLength, "other");
        device.write(other, new Uint8Array(byteLength).fill(255));
        await Promise.all([first, second]);
        assert.deepEqual(await outputOf(device, buffers.output, tokens), expected);
        for (const each of [other, buffers]) each[Symbol.dispose]();
      }
    }));
});
