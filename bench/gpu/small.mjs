/**
 * A small run from end to end, for compute-sanitizer: layers of every element type and
 * of several forms, from a handful of tokens to a few thousand, eager, captured and
 * replayed, on one stream and on several, with budgets that change in between. Outputs
 * are compared with the CPU device. Takes seconds by itself, minutes under a sanitizer.
 *
 *   node bench/gpu/small.mjs [ELEMENT TYPE[/PART]...]     (default: all; parts are 1, 2 and 3)
 *
 * A part of a 16-bit type's forms at a time is what racecheck has memory for: on the host it keeps tens of gigabytes.
 *
 * The kernels for many rows (kernels/triton/experts/many.py) are chosen for wider rows than the
 * other forms need, so they have forms of their own, and so have packed weights; that they were launched is checked.
 */

import assert from "node:assert/strict";
import { kernelsOf, openRemembering } from "./loaded-kernels.mjs";
import {
  ExpertPopularity,
  MoELayer,
  makeLogits,
  openDevice,
  parseSkew,
  Random,
  relativeError,
  roundToBfloat16,
  uniformBlock,
} from "./support.mjs";

const BOUND = { float32: 2e-5, float16: 2e-3, bfloat16: 1.2e-2 };
const TOP_K = 2;

const SMALL = { experts: 6, hidden: 72, inner: 40, tokens: [1, 4, 33, 300] };
/**
 * On sm_90 such rows are padded to 384 and 192 elements: six steps of a product of many rows, and the
 * three that are the least; in both products one and a half tiles of columns. So few weights lie in the
 * L2, where it takes a thousand rows an expert.
 */
const MANY = { experts: 6, hidden: 328, inner: 136, tokens: [3300, 3190], skew: "zipf:5.5" };
/** Rows of a tile there; skew leaves one expert with fewer than an eighth, and others with several tiles. */
const TILE_ROWS = 128;
/** Up to so many rows an expert tiles are lower (src/execution/cuda/operators/choice.ts): [rows, of a tile]. */
const LOW_SHARES = [
  [16, 32],
  [48, 64],
];
/**
 * 69 MB of experts, more than the L2 holds. With 96 rows on average (700 tokens are recorded as 768) and with 64 programs claim
 * their pieces, and tiles of few rows take half the time; with 32 they go in step, through tiles of 64 rows, and with 14 through tiles of
 * 32. Always with all blocks: on one for each of three streams these would take minutes under racecheck.
 */
const BEYOND = {
  experts: 16,
  hidden: 1032,
  inner: 700,
  tokens: [700, 500, 250, 110],
  skew: "zipf:1.5",
  whole: true,
};
/** The same with biases, and three of them. */
const BIASED = { ...BEYOND, bias: true, tokens: [500, 250, 110] };
/** 40 rows an expert on average, which makes tiles of 64. */
const FEWER = { experts: 6, hidden: 328, inner: 136, tokens: [120], skew: "zipf:1.5" };
/** 75 MB of experts, 56 packed: more than the L2 holds. */
const PACKED = { ...BEYOND, inner: 760, packWeights: true };
const PACKED_BIASED = { ...PACKED, bias: true };
/** For as few tokens as decode takes, in which one of its kernels is as good as another. */
const DECODING = {
  experts: 6,
  hidden: 328,
  inner: 136,
  tokens: [1, 4],
  packWeights: true,
  bias: true,
};
const SIZES = {
  many: MANY,
  beyond: BEYOND,
  biased: BIASED,
  fewer: FEWER,
  packed: PACKED,
  "packed, biased": PACKED_BIASED,
  "packed, decoding": DECODING,
};
const SMALL_FORMS = ["plain", "mlp", "concat", "capacity"];
const MANY_FORMS = ["many", "beyond", "biased", "fewer"];
const PACKED_FORMS = ["packed", "packed, biased", "packed, decoding"];
/** Each in parts. */
const FORMS = {
  bfloat16: [SMALL_FORMS, MANY_FORMS, PACKED_FORMS],
  float16: [SMALL_FORMS, MANY_FORMS],
  float32: [SMALL_FORMS],
};
/** Entries in the manifest of kernels that a part is to launch: all of them, or one that is as good as the others. */
const ALL_OF = new Map([
  [MANY_FORMS, ["project_many"]],
  [PACKED_FORMS, ["project_packed", "pack_weights"]],
]);
const ONE_OF = new Map([[PACKED_FORMS, ["decode_packed_routing", "decode_packed_second"]]]);

const random = new Random(1);

/** Weights as the element type has them. */
function weightsOf(dtype, shape, bound) {
  const length = shape.reduce((a, b) => a * b);
  return { dtype, shape, data: uniformBlock(dtype, length, bound, random) };
}

function layerOf(dtype, form, { experts: count, hidden, inner, bias = false }) {
  const matrix = (outputs, inputs) =>
    weightsOf(dtype, [count, outputs, inputs], Math.sqrt(3 / inputs));
  const isMlp = form === "mlp";
  const spec = {
    hiddenSize: hidden,
    router: {
      experts: count,
      topK: TOP_K,
      rule: { scoring: "softmax", renormalize: true, scale: 1 },
      ...(form === "capacity" && { capacityFactor: 1 }),
    },
    experts: {
      form: isMlp ? "mlp" : "gated",
      ...(isMlp && { depth: 3 }),
      hiddenSize: hidden,
      intermediateSize: inner,
      activation: { kind: isMlp ? "gelu" : "silu" },
      bias,
      dtype,
    },
    aggregation: {
      mode: form === "concat" ? "concat" : "sum",
      weightsApplyTo: form === "concat" ? "input" : "output",
      residual: form === "plain",
    },
  };
  const vector = (outputs) => weightsOf("float32", [count, outputs], 1);
  const experts = isMlp
    ? { layers: [matrix(inner, hidden), matrix(inner, inner), matrix(hidden, inner)] }
    : {
        gate: matrix(inner, hidden),
        up: matrix(inner, hidden),
        down: matrix(hidden, inner),
        ...(bias && {
          gateBias: vector(inner),
          upBias: vector(inner),
          downBias: vector(hidden),
        }),
      };
  return { spec, weights: { gate: weightsOf("float32", [count, hidden], 0.4), experts } };
}

/** Logits that load the experts of many rows unevenly; the other forms have gates. */
function logitsFor({ experts, skew }, tokens) {
  if (skew === undefined) return {};
  const popularity = ExpertPopularity.draw(parseSkew(skew), experts, random);
  return { logits: makeLogits(popularity, tokens, random) };
}

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

async function runForm(dtype, form) {
  const sizes = SIZES[form] ?? SMALL;
  const { spec, weights } = layerOf(dtype, form, sizes);
  for (const streams of sizes.whole ? [1] : [1, 3]) {
    const { packWeights = false } = sizes;
    const layer = new MoELayer(spec, weights, { device: gpu, streams, packWeights });
    const reference = new MoELayer(spec, weights, { device: cpu });
    for (const tokens of sizes.tokens) {
      const values = random.fillNormal(new Float32Array(tokens * sizes.hidden));
      const hidden = { data: values.map(roundToBfloat16), shape: [tokens, sizes.hidden] };
      const given = logitsFor(sizes, tokens);
      const want = (await reference.forward(hidden, given)).output.data;
      for (let step = 0; step < 3; step++) {
        if (step === 2 && !sizes.whole) await changeBudgets(layer, sizes);
        const { output, stats } = await layer.forward(hidden, given);
        checkLoad(form, sizes, tokens, stats);
        const error = relativeError(output.data, want);
        if (!(error < BOUND[dtype])) {
          throw new Error(`${dtype}, ${form}, ${tokens} tokens: off by ${error}`);
        }
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

const { device: gpu, loaded } = await openRemembering();
const cpu = await openDevice({ kind: "cpu" });
/** Names of kernels that were to be launched, and were. */
const launched = new Set();

function checkLaunched(entries, dtype, missing) {
  for (const entry of entries) {
    const names = kernelsOf(gpu, entry, [dtype]);
    const found = names.filter((name) => loaded().includes(name));
    assert.ok(!missing(names, found), `of ${names.join(", ")} only ${found.join(", ")} launched`);
    for (const name of found) launched.add(name);
  }
}

for (const asked of process.argv.length > 2 ? process.argv.slice(2) : Object.keys(FORMS)) {
  const [dtype, part] = asked.split("/");
  assert.ok(dtype in FORMS, `${dtype} is not one of ${Object.keys(FORMS).join(", ")}`);
  const parts = part === undefined ? FORMS[dtype] : [FORMS[dtype][Number(part) - 1]];
  assert.ok(parts[0] !== undefined, `${dtype} has no part ${part}`);
  for (const forms of parts) {
    for (const form of forms) await runForm(dtype, form);
    checkLaunched(ALL_OF.get(forms) ?? [], dtype, (all, found) => found.length < all.length);
    checkLaunched(ONE_OF.get(forms) ?? [], dtype, (all, found) => all.length > 0 && !found[0]);
  }
}
await gpu.close();
await cpu.close();
console.log("small run: all outputs agree with the CPU device");
console.log(
  `kernels for many rows and packed weights among them: ${[...launched].join(", ") || "none for these forms on this GPU"}`,
);
