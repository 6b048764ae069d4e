/**
 * A small run from end to end, for compute-sanitizer: layers of every element type and
 * of several forms (small-layers.mjs), from a handful of tokens to a few thousand, eager, captured and
 * replayed, on one stream and on several, with budgets that change in between. Outputs
 * are compared with the CPU device. Takes seconds by itself, minutes under a sanitizer.
 *
 *   node bench/gpu/small.mjs [ELEMENT TYPE[/PART]...]     (default: all; PARTS below has them)
 *
 * A part of a type's forms at a time is what racecheck has memory for: on the host it keeps tens of gigabytes.
 *
 * The kernels for many rows (kernels/triton/experts/many.py) are chosen for wider rows than the
 * other forms need, so they have forms of their own, and so have packed weights. So has what other forms go past: shared
 * experts, rules that need more than logits, tensors that stay on the device, ids that the host wrote. That the kernels
 * were launched is checked. Partitions are the last part, as not every driver has them, nor may every sanitizer know them.
 */

import assert from "node:assert/strict";
import { kernelsOf, openRemembering } from "./loaded-kernels.mjs";
import {
  hiddenFor,
  LOW_SHARES,
  layerOf,
  logitsFor,
  sizesOf,
  TILE_ROWS,
  TOP_K,
  weightsOf,
} from "./small-layers.mjs";
import {
  DeviceTensor,
  Experts,
  FilledLayer,
  MoELayer,
  openDevice,
  Random,
  Router,
  relativeError,
  SliceManager,
  schedule,
  toFloat32,
} from "./support.mjs";

const BOUND = { float32: 2e-5, float16: 2e-3, bfloat16: 1.2e-2 };
const SMALL_FORMS = ["plain", "mlp", "concat", "capacity"];
const MANY_FORMS = ["many", "beyond", "biased", "fewer"];
const PACKED_FORMS = ["packed", "packed, biased", "packed, decoding", "packed, grouped"];
const OTHER_FORMS = [
  "shared",
  "grouped",
  "sparsemixer",
  "narrow logits",
  "filled",
  "in place",
  "scheduled",
];
const PARTITIONED_FORMS = ["partitioned"];
const PARTS = {
  bfloat16: [SMALL_FORMS, MANY_FORMS, PACKED_FORMS, OTHER_FORMS, PARTITIONED_FORMS],
  float16: [SMALL_FORMS, MANY_FORMS, OTHER_FORMS],
  float32: [SMALL_FORMS, OTHER_FORMS],
};
/** Entries in the manifest of kernels that a part is to launch, and what these select: all of them, or one that is as good as the others. */
const ALL_OF = new Map([
  [MANY_FORMS, (element) => [["project_many", { element }]]],
  [
    PACKED_FORMS,
    (element) => [
      ["project_packed", { element }],
      ["pack_weights", { element }],
    ],
  ],
  [
    OTHER_FORMS,
    (element) => [
      ["fill_uniform", { element }],
      ["mark", {}],
    ],
  ],
]);
const ONE_OF = new Map([
  [
    PACKED_FORMS,
    (element) => [
      ...[false, true].flatMap((joint) => [
        ["decode_packed_routing", { element, joint }],
        ["decode_packed_first", { element, joint }],
      ]),
      ["decode_packed_second", { element }],
      ["decode_packed_second_joint", { element }],
    ],
  ],
  [
    OTHER_FORMS,
    (element) => [
      ["decode_first", { element, routes: false }],
      // Of a gate's logits, which are float32, and of the caller's.
      ["route", { element: "float32", plain: false }],
      ["route", { element, plain: true }],
    ],
  ],
]);

/** Forms that something else is done with than runForm() does. */
const WAYS = {
  filled: runFilled,
  "in place": runInPlace,
  scheduled: runScheduled,
  partitioned: runPartitioned,
};

/** Tiles that are full, tiles that are not, and an expert with few rows; or many with less than half a tile. */
function checkLoad(form, sizes, tokens, { counts }) {
  const rows = [...counts].sort((a, b) => a - b);
  const [few, most] = [rows[0], rows.at(-1)];
  if (form === "many") {
    assert.ok(few > 0 && few < TILE_ROWS / 8, `the fewest rows are ${few}`);
    assert.ok(most > 2 * TILE_ROWS && most % TILE_ROWS !== 0, `the most rows are ${most}`);
  } else if (sizes.whole) {
    const share = (tokens * TOP_K) / rows.length;
    const [, tile] = LOW_SHARES.find(([most]) => share <= most) ?? [share, TILE_ROWS];
    assert.ok(rows[rows.length / 2] < tile / 2, `half have ${rows[rows.length / 2]} rows`);
    assert.ok(most > 2 * tile, `the most rows are ${most}`);
  } else if (form === "fewer") {
    assert.ok(few > 0 && few < TILE_ROWS / 2, `the fewest rows are ${few}`);
    assert.ok(most > TILE_ROWS / 2, `the most rows are ${most}`);
  }
}

function checkOutput(dtype, what, output, want) {
  const error = relativeError(output, want);
  if (!(error < BOUND[dtype])) throw new Error(`${dtype}, ${what}: off by ${error}`);
}

async function runForm(random, dtype, form) {
  const sizes = sizesOf(form);
  const { spec, weights } = layerOf(random, dtype, form);
  for (const streams of sizes.whole ? [1] : [1, 3]) {
    const { packWeights = false } = sizes;
    const layer = new MoELayer(spec, weights, { device: gpu, streams, packWeights });
    const reference = new MoELayer(spec, weights, { device: cpu });
    for (const tokens of sizes.tokens) {
      const hidden = hiddenFor(random, dtype, form, tokens);
      const given = logitsFor(random, dtype, form, tokens);
      const want = (await reference.forward(hidden, given)).output.data;
      for (let step = 0; step < 3; step++) {
        if (step === 2 && !sizes.whole) await changeBudgets(layer, sizes);
        const { output, stats } = await layer.forward(hidden, given);
        checkLoad(form, sizes, tokens, stats);
        checkOutput(dtype, `${form}, ${tokens} tokens`, output.data, want);
      }
    }
    await layer.close();
    await reference.close();
  }
}

/** Half of the device for the busiest; of many rows one block for each stream, which then goes from tile to tile. */
async function changeBudgets(layer, { experts, skew }) {
  const control = await layer.control;
  const half = Math.floor(gpu.properties.computeUnits / 2);
  const units = skew !== undefined ? { A: 1, B: 1, C: 1 } : { A: half };
  for (const [slice, count] of Object.entries(units)) control.slices.resize(slice, count);
  control.replan(new Int32Array(experts).fill(1));
  for (const slice of Object.keys(units)) control.slices.resize(slice, null);
}

/** Noise is not the same on both devices: a layer that is filled alike again has the same outputs, and another has others. */
async function runFilled(random, dtype, form) {
  const { experts, hidden: hiddenSize, inner, tokens } = sizesOf(form);
  const shape = { experts, hiddenSize, intermediateSize: inner, topK: TOP_K };
  const { spec } = layerOf(random, dtype, form);
  const batches = tokens.map((count) => hiddenFor(random, dtype, form, count));
  const outputs = [];
  for (const seed of [5, 5, 6]) {
    const layer = new MoELayer(spec, new FilledLayer(shape, dtype, seed), { device: gpu });
    const all = [];
    for (const hidden of batches) all.push((await layer.forward(hidden)).output.data);
    outputs.push(all);
    await layer.close();
  }
  const [first, again, other] = outputs;
  assert.deepEqual(again, first, `${dtype}, ${form}`);
  for (const [i, output] of first.entries()) {
    assert.ok(output.every(Number.isFinite) && relativeError(other[i], output) > 0.1, form);
  }
}

/** Replays that read hidden states and logits where the caller has them. Outputs all stay, so every replay writes elsewhere. */
async function runInPlace(random, dtype, form) {
  const { spec, weights } = layerOf(random, dtype, form);
  const layer = new MoELayer(spec, weights, { device: gpu });
  const reference = new MoELayer(spec, weights, { device: cpu });
  for (const tokens of sizesOf(form).tokens) {
    const batches = [];
    for (let i = 0; i < 2; i++) {
      const hidden = hiddenFor(random, dtype, form, tokens);
      const { logits } = logitsFor(random, dtype, form, tokens);
      const want = (await reference.forward(hidden, { logits })).output.data;
      const [onDevice, scores] = [hidden, logits].map((each) => DeviceTensor.fromHost(gpu, each));
      batches.push({ hidden: onDevice, logits: scores, want });
    }
    const made = batches.flatMap(({ hidden, logits }) => [hidden, logits]);
    for (let step = 0; step < 6; step++) {
      const { hidden, logits, want } = batches[step % 2];
      const { output, stats } = await layer.forward(hidden, { logits });
      made.push(output);
      if (step >= 2) assert.equal(stats.mode, "replayed");
      checkOutput(dtype, `${form}, ${tokens} tokens`, toFloat32(await output.toHost()), want);
    }
    for (const tensor of made) tensor[Symbol.dispose]();
  }
  await layer.close();
  await reference.close();
}

/** Batches that the host has the ids of: routed by themselves, planned, and run once. */
async function runScheduled(random, dtype, form) {
  const { experts: count, tokens } = sizesOf(form);
  const { spec, weights } = layerOf(random, dtype, form);
  for (const size of tokens) {
    const hidden = hiddenFor(random, dtype, form, size);
    const logits = weightsOf(random, "float32", [size, count], 4);
    const run = async (device, streams) => {
      const router = new Router({ topK: TOP_K, device });
      const experts = await Experts.fromTensors(spec.experts, count, weights.experts, { device });
      const buckets = await router.route(hidden, logits);
      const plan = new SliceManager({ device: device.properties }).allocate(buckets);
      const { output } = await schedule(plan, experts, { streams }).run();
      experts[Symbol.dispose]();
      router[Symbol.dispose]();
      return output.data;
    };
    const want = await run(cpu, 1);
    for (const streams of [1, 3]) {
      checkOutput(dtype, `${form}, ${size} tokens`, await run(gpu, streams), want);
    }
  }
}

/** Hot, warm and cold experts on multiprocessors of their own, of which the hot then get others. */
async function runPartitioned(random, dtype, form) {
  const { partitioned } = gpu.properties.realisations;
  if (!partitioned.available) {
    console.log(`no partitions: ${partitioned.reason}`);
    return;
  }
  const sizes = sizesOf(form);
  const { spec, weights } = layerOf(random, dtype, form);
  const slices = { realisation: "partitioned" };
  const layer = new MoELayer(spec, weights, { device: gpu, streams: 3, slices });
  const reference = new MoELayer(spec, weights, { device: cpu });
  const control = await layer.control;
  for (const [expert, slice] of ["A", "B", "C"].entries()) control.slices.migrate(expert, slice);
  control.replan(new Int32Array(sizes.experts).fill(1));
  for (const tokens of sizes.tokens) {
    const hidden = hiddenFor(random, dtype, form, tokens);
    const want = (await reference.forward(hidden)).output.data;
    for (let step = 0; step < 6; step++) {
      if (step === 3) await changeBudgets(layer, sizes);
      const { output, stats } = await layer.forward(hidden);
      assert.equal(stats.streams, 3);
      checkOutput(dtype, `${form}, ${tokens} tokens`, output.data, want);
    }
  }
  await layer.close();
  await reference.close();
}

const { device: gpu, loaded } = await openRemembering();
const cpu = await openDevice({ kind: "cpu" });
/** Names of kernels that were to be launched, and were. */
const launched = new Set();

function checkLaunched(wanted, isMissing) {
  for (const [entry, selects] of wanted) {
    const names = kernelsOf(gpu, entry, selects);
    const found = names.filter((name) => loaded().includes(name));
    assert.ok(!isMissing(names, found), `of ${names.join(", ")} only ${found.join(", ")} launched`);
    for (const name of found) launched.add(name);
  }
}

for (const asked of process.argv.length > 2 ? process.argv.slice(2) : Object.keys(PARTS)) {
  const [dtype, part] = asked.split("/");
  assert.ok(dtype in PARTS, `${dtype} is not one of ${Object.keys(PARTS).join(", ")}`);
  const parts = part === undefined ? PARTS[dtype] : [PARTS[dtype][Number(part) - 1]];
  assert.ok(parts[0] !== undefined, `${dtype} has no part ${part}`);
  for (const forms of parts) {
    // A part is the same whatever runs before it.
    const random = new Random(1);
    for (const form of forms) await (WAYS[form] ?? runForm)(random, dtype, form);
    const [all, one] = [ALL_OF, ONE_OF].map((wanted) => wanted.get(forms)?.(dtype) ?? []);
    checkLaunched(all, (names, found) => found.length < names.length);
    checkLaunched(one, (names, found) => names.length > 0 && found.length === 0);
  }
}
await gpu.close();
await cpu.close();
console.log("small run: all outputs agree with the CPU device");
console.log(
  `kernels that were to be launched: ${[...launched].join(", ") || "none for these forms on this GPU"}`,
);
