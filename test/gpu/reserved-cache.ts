/**
 * A layer whose slices have cache set aside, as a user asks for it: the plan tells the device, which sets the
 * driver's limit and gives launches windows on their weights. None of that changes a bit, and graphs come
 * back with the reservation that they were captured under.
 */

import assert from "node:assert/strict";
import type { BudgetedSliceId } from "../../src/control/plan.ts";
import type { LayerSpec } from "../../src/data/spec.ts";
import type { Device, Realisation } from "../../src/execution/device.ts";
import { MoELayer } from "../../src/layer/moe-layer.ts";
import { batch, gatedExperts, plainSpec, randomLayer } from "../support/layers.ts";
import { normal, randomFor } from "../support/seed.ts";

const MIB = 1 << 20;
/** The driver rounds up; an H200's to multiples of 3.75 MiB. */
const GRANULE = 4 * MIB;
const NEVER = 1_000_000;
const HIDDEN = 100;
const EXPERTS = 24;
/** The largest first, as graphs go with the buffers that a larger batch replaces. */
const TOKENS = [200, 40];
const SLICES = ["A", "B", "C"] as const;

type Reservation = Readonly<Partial<Record<BudgetedSliceId, number>>>;

const NOTHING: Reservation = {};
const SOME: Reservation = { A: 2 * MIB, B: MIB };
const MORE: Reservation = { A: 8 * MIB, C: 4 * MIB, D: MIB };
/** It ends with some, for whoever closes the device. */
const TURNS: readonly Reservation[] = [SOME, NOTHING, MORE, NOTHING, SOME];

const SPEC: LayerSpec = {
  ...plainSpec(HIDDEN, 1, EXPERTS, 3),
  experts: gatedExperts(HIDDEN, 75, { dtype: "bfloat16", bias: true }),
  shared: { experts: gatedExperts(HIDDEN, 70, { dtype: "bfloat16" }), gate: true },
};

/**
 * @param setAside bytes of the GPU's cache that the driver has set aside, read after every step
 * @returns what that was under each of the reservations in turn
 */
export async function checkReservedCache(
  device: Device,
  realisation: Realisation,
  setAside: () => number,
): Promise<readonly number[]> {
  const random = randomFor(`reserved cache ${realisation}`);
  const { tensors } = randomLayer(random, SPEC);
  const batches = TOKENS.map((tokens) => batch(normal(random, tokens * HIDDEN), HIDDEN));
  const options = { device, streams: 3, slices: { policy: "static", realisation } } as const;
  const before = setAside();
  const expected = await unreserved();

  await using layer = new MoELayer(SPEC, tensors, options);
  const control = await layer.control;
  // A slice without a lane of its own gets no cache: each has experts, and so a lane.
  for (let e = 0; e < EXPERTS; e++) control.slices.migrate(e, SLICES[e % 3] as "A" | "B" | "C");
  const replan = () => control.replan(new Int32Array(EXPERTS).fill(1));
  const step = async (i: number, mode: string, what: string) => {
    const { output, stats } = await layer.forward(batches[i] as (typeof batches)[number]);
    assert.equal(stats.mode, mode, what);
    assert.deepEqual(output.data, expected[i], what);
  };

  const captured = new Set<Reservation>();
  const found: number[] = [];
  for (const [turn, reserved] of TURNS.entries()) {
    for (const slice of [...SLICES, "D"] as const) {
      control.slices.reserve(slice, { cacheBytes: reserved[slice] ?? 0 });
    }
    replan();
    const modes = captured.has(reserved) ? ["replayed"] : ["eager", "captured", "replayed"];
    captured.add(reserved);
    for (const i of batches.keys()) {
      for (const mode of modes) {
        await step(i, mode, `turn ${turn}, ${TOKENS[i]} tokens, ${JSON.stringify(reserved)}`);
        found[turn] = setAside();
        if (reserved === NOTHING) assert.equal(found[turn], before, "with nothing reserved");
        else checkSetAside(found[turn] as number, reserved);
      }
    }
  }

  if (realisation === "shared") {
    // Other grids, the same windows.
    for (const part of [0.25, 0.6]) {
      control.slices.resize("A", Math.floor(part * device.properties.computeUnits));
      replan();
      for (const i of batches.keys())
        await step(i, "replayed", `${part} of the device for slice A`);
    }
  }
  return found;

  async function unreserved(): Promise<readonly Float32Array[]> {
    await using clean = new MoELayer(SPEC, tensors, { ...options, graphs: { warmup: NEVER } });
    const outputs: Float32Array[] = [];
    for (const hidden of batches) outputs.push((await clean.forward(hidden)).output.data);
    return outputs;
  }
}

/** Slice D has no experts, and so no lane and no cache. */
function checkSetAside(bytes: number, { A = 0, B = 0, C = 0 }: Reservation): void {
  const asked = A + B + C;
  const what = `${bytes} bytes are set aside for ${asked}`;
  assert.ok(bytes >= asked && bytes < asked + GRANULE, what);
}
