/** The product of weights in 12 bits on an emulated GPU: the bits of the product of the same weights as they are. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { Random } from "../../../../src/workload/random.ts";
import { between, normal, randomFor } from "../../../support/seed.ts";
import { type ByHand, callByHand } from "./by-hand.ts";
import type { TensorMapFields } from "./call.ts";
import { shippedManifest } from "./driver.ts";
import { projectPacked } from "./kernels/packed.ts";
import { project } from "./kernels/project.ts";
import { brainBits } from "./numbers.ts";
import {
  inPanels,
  pack,
  packedArguments,
  rowsOf,
  type Sizes,
  shipped,
  sprinkle,
} from "./packed-weights.ts";

/** Not a whole number of blocks of 128 or 256 columns, and padding in k. */
const SIZES: Sizes = { matrices: 3, n: 320, k: 192, columns: 170 };
const TOP_K = 2;

function brains(values: Float32Array): Uint16Array<ArrayBuffer> {
  return Uint16Array.from(values, brainBits);
}

/** Lists of tiles of each matrix, groups of one. */
function tilesOf(random: Random, height: number): { tiles: number[]; slots: number } {
  const tiles: number[] = [];
  let slots = 0;
  for (let matrix = 0; matrix < SIZES.matrices; matrix++) {
    for (let tile = 0; tile < 2; tile++) {
      const rows = tile === 0 ? height : between(random, 1, height);
      tiles.push(matrix, slots, rows, 1 << 16);
      slots += rows;
    }
  }
  return { tiles, slots };
}

function weights(random: Random): Float32Array[] {
  const { n, columns } = SIZES;
  const outputs = n - 30;
  const rows = rowsOf(SIZES, (row, column) =>
    row % n < outputs && column < columns ? (normal(random, 1, 0.1)[0] as number) : 0,
  );
  sprinkle(random, rows, columns, 3, (weight) => weight * 2 ** between(random, -30, 6));
  return rows;
}

/** Outputs of a product of plain and of packed weights, for a form as `gated_logistic_bias`. */
function both(random: Random, form: string, height: number): Uint16Array[] {
  const { n, k, matrices } = SIZES;
  const gated = form.startsWith("gated");
  const rows = weights(random);
  const packed = pack(SIZES, rows);
  assert.equal(packed.failures, 0);
  // A kernel of 32 rows also has lists of 16.
  const { tiles, slots } = tilesOf(random, height === 32 ? 16 : height);
  const inputs = gated ? Math.ceil(slots / TOP_K) : slots;
  const x = brains(
    normal(random, inputs * k).map((value, i) => (i % k < SIZES.columns ? value : 0)),
  );
  const width = gated ? n / 2 : n;
  const bits = shippedManifest().options["project"] ?? {};
  const options = [
    "read_once",
    ...(gated ? ["gather"] : []),
    ...(form.endsWith("bias") ? ["bias"] : []),
  ];
  const common = {
    x,
    bias: Float32Array.from(normal(random, matrices * n)),
    tiles: Int32Array.from(tiles),
    tile_count: Int32Array.of(tiles.length / 4, 0, 0, 0),
    order: Int32Array.from(random.permutation(slots)),
  };
  const numbers = {
    ...{ n, k, x_pitch: k, out_pitch: width, top_k: TOP_K },
    options: options.reduce((all, name) => all | (bits[name] as number), 0),
    ...{ code: 0, linear: 1, cubic: 0, limit: 2, shift: 1 },
  };
  const { buffers, map } = packedArguments(packed);
  const panels = { element: "bf16", shape: [(rows.length * k) / 64, 64], swizzle: 3 } as const;
  return (["many", "packed"] as const).map((kind) => {
    const entry = shipped(`project_${form}_bf16_${kind}${height}`);
    const out = new Uint16Array(slots * width).fill(0x7fc0);
    const boxOf = (argument: string) =>
      entry.tensordesc_meta.find((meta) => meta.argument === argument)?.block_size as number[];
    const maps: Record<string, Omit<TensorMapFields, "address">> = {
      w: { ...(kind === "packed" ? map : panels), box: boxOf("w") },
    };
    if (!gated) maps["x"] = { ...panels, shape: [inputs, k], box: boxOf("x") };
    const own: ByHand["buffers"] = kind === "packed" ? buffers : { w: inPanels(SIZES, rows) };
    const call = { entry, programs: 5, numbers, maps, buffers: { ...common, ...own, out } };
    (kind === "packed" ? projectPacked : project)(callByHand(call));
    return out;
  });
}

describe("the emulated product of packed weights", () => {
  for (const form of [
    "gated_logistic",
    "gated_logistic_bias",
    "plain_identity",
    "plain_identity_bias",
  ]) {
    for (const height of [32, 64, 128]) {
      it(`has the bits of ${form} of plain weights on tiles of ${height} rows`, () => {
        const [plain, packed] = both(randomFor(`${form} ${height}`), form, height);
        assert.ok(
          plain?.every((bits) => (bits & 0x7f80) !== 0x7f80),
          "not all was written",
        );
        assert.deepEqual(packed, plain);
      });
    }
  }

  it("has biases where the kernel is one with biases", () => {
    const [without] = both(randomFor("biases"), "plain_identity", 64);
    const [biased] = both(randomFor("biases"), "plain_identity_bias", 64);
    assert.notDeepEqual(biased, without);
  });
});
