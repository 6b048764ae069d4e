/** `project` with packed weights as work: which kernel, which values, and what there are no kernels for. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { OperatorEncoder } from "../../../../src/execution/cuda/operators/encoder.ts";
import type { LaneList } from "../../../../src/execution/cuda/operators/lane.ts";
import { paysPacked } from "../../../../src/execution/cuda/operators/packed.ts";
import type { CudaProjection } from "../../../../src/execution/cuda/projection.ts";
import type {
  Activation,
  BucketRows,
  ProjectOperator,
} from "../../../../src/execution/operators.ts";
import { type FakeBuffer, FakeDevice } from "./harness.ts";
import { bucketOf, lane, projectAll, walkOf } from "./operators.ts";

const SILU: Activation = { kind: "silu" };
const BIAS_LAST = 512;
/** Of 8 experts, 250 rows each. */
const MANY = { experts: 8, topK: 2, mostTokens: 1000 };

describe("a product of packed weights", () => {
  it("gated and gathered, takes its kernel, with words by tensor map and the rest by address", async () => {
    const spec = { packed: true, gated: true, bias: true };
    const { device, operator, projection, lists, buffers } = await lane(MANY, spec, {}, SILU);
    const { name, values, grid, work } = device.kernel(operator);
    assert.equal(name, "project_gated_logistic_bias_bf16_packed128");
    const { w, tiles, tile_count, ...rest } = values;
    assert.ok((tiles as bigint) > lists.address && (tile_count as bigint) > lists.address);
    assert.equal((w as Uint8Array)[0], 1);
    const shape = [8 * 2 * (256 / 64), 3, 16, 32];
    const map = { element: "int32", swizzle: 3, l2Promotion: 2, box: [2, 1, 16, 32] };
    assert.deepEqual(device.maps, [{ ...map, address: projection.address, shape }]);
    const { tables } = projection as ReturnType<FakeDevice["packed"]>;
    assert.deepEqual(
      Object.fromEntries(Object.entries(rest).filter(([key]) => !/^w_|scratch/.test(key))),
      {
        ...tables,
        x: (operator.input as FakeBuffer).address,
        bias: projection.bias(0),
        out: (operator.output as FakeBuffer).address,
        order: buffers.buckets.order.address,
        n: 256,
        k: 128,
        x_pitch: 128,
        out_pitch: 128,
        top_k: 2,
        // Gather, bias, read once; rows of two steps, whose plain kernel takes a bias in at the end.
        options: 1 | 2 | 128 | BIAS_LAST,
        code: 4,
        linear: 1,
        cubic: 0,
        limit: Number.POSITIVE_INFINITY,
        shift: 0,
      },
    );
    // 23 tiles there is room for, by two times 128 columns.
    assert.equal(grid.x, 46);
    assert.deepEqual(work.weights, projection.weights);
    assert.equal(work.mapped, undefined);
    assert.ok(work.budgeted && work.product);
  });

  it("plain and in order, takes its kernel, and reads rows by tensor map", async () => {
    const { device, operator } = await lane(MANY, { packed: true }, { gather: false });
    const { name, work, values } = device.kernel(operator);
    assert.equal(name, "project_plain_identity_bf16_packed128");
    const { address } = operator.input as FakeBuffer;
    assert.equal(work.mapped, address);
    const [x, w] = device.maps;
    assert.deepEqual([x?.address, x?.element, x?.shape], [address, "bfloat16", [2000, 128]]);
    assert.equal(w?.element, "int32");
    assert.equal(values["options"], 128);
    assert.equal(values["bias"], 0n);
  });

  it("takes the lowest kernel that is as tall as its list's tiles, which are those of plain weights", async () => {
    const { l2Bytes } = (await FakeDevice.open()).context.facts;
    for (const [mostTokens, height] of [
      [4, 32],
      [40, 32],
      [100, 64],
      [1000, 128],
    ] as const) {
      const sizes = { ...MANY, mostTokens };
      const { device, operator, lists } = await lane(
        sizes,
        { packed: true, gated: true },
        {},
        SILU,
        l2Bytes + 1,
      );
      assert.match(device.kernel(operator).name, new RegExp(`_packed${height}$`));
      const plain = await lane(sizes, { gated: true }, {}, SILU, l2Bytes + 1);
      assert.equal(lists.byteLength, plain.lists.byteLength);
    }
  });

  it("claims its pieces on low tiles, one product of a list", async () => {
    const bitsOf = async (mostTokens: number, gated: boolean, l2Bytes: number) => {
      const sizes = { ...MANY, mostTokens };
      const activation: Activation = gated ? SILU : { kind: "none" };
      const spec = { packed: true, gated };
      const rows = { gather: gated };
      const made = await lane(sizes, spec, rows, activation, undefined, { l2Bytes });
      const { device, operator } = made;
      const other = device.packed({ count: sizes.experts, gated });
      return [operator, { ...operator, projection: other }].map((each) =>
        walkOf(device.kernel(each).values["options"]),
      );
    };
    // A share of 2, 8 and 32 rows.
    for (const gated of [true, false]) {
      assert.deepEqual(await bitsOf(8, gated, 1024), [["claimed"], []]);
      assert.deepEqual(await bitsOf(32, gated, 2 ** 20), [["claimed"], []]);
      assert.deepEqual(await bitsOf(128, gated, 2 ** 20), [["claimed"], []], "a matrix fits");
      assert.deepEqual(await bitsOf(128, gated, 1024), [["in step"], []]);
    }
  });

  it("and the plain ones that are there as well count in the same word, whichever is read", async () => {
    const slow = { memoryBytesPerSecond: 3.35e12 };
    const sizes = { ...MANY, mostTokens: 32 };
    const { device, operator } = await lane(sizes, { gated: true }, {}, SILU, undefined, slow);
    const projection = await device.beside({ count: MANY.experts, gated: true });
    const own = { ...operator, projection };
    const how = () => {
      const { name, values } = device.kernel(own);
      return [/packed/.test(name), ...walkOf(values["options"])];
    };
    const packed = how();
    device.word = 1;
    await assert.rejects(projection.fill(2, 0.1), { name: "UnpackableWeightsError" });
    const plain = how();
    device.word = 0;
    await projection.fill(2, 0.1);
    assert.deepEqual(
      [packed, plain, how()],
      [
        [true, "claimed"],
        [false, "in step"],
        [true, "claimed"],
      ],
    );
  });

  it("never takes half the time", async () => {
    const few = { ...MANY, mostTokens: 300 };
    const plain = await lane(few, { gated: true, inputs: 200 }, {}, SILU);
    assert.ok((plain.device.kernel(plain.operator).values["options"] as number) & 16);
    const { device, operator } = await lane(
      few,
      { gated: true, inputs: 200, packed: true },
      {},
      SILU,
    );
    assert.equal((device.kernel(operator).values["options"] as number) & 16, 0);
  });

  it("is refused where there is no kernel for it", async () => {
    const refused = async (
      message: RegExp,
      { gated = true, rows = {}, activation = SILU }: Refused,
    ) => {
      const { device, operator } = await lane(MANY, { packed: true, gated }, rows, activation);
      assert.throws(() => device.encode(operator), { name: "InvalidArgumentError", message });
    };
    interface Refused {
      gated?: boolean;
      rows?: Partial<BucketRows>;
      activation?: Activation;
    }
    const device = await FakeDevice.open();
    const inputScale = device.buffer(8000);
    await refused(/inputScale is given, and the weights are packed\. Use a projection/, {
      rows: { inputScale },
    });
    await refused(/rows\.gather is false, and the weights are packed and gated/, {
      rows: { gather: false },
    });
    await refused(/rows\.gather is true, and the weights are packed and not gated/, {
      gated: false,
    });
    await refused(/no kernel for relu behind gated packed weights on tiles of 128 rows/, {
      activation: { kind: "relu" },
    });
    await refused(/no kernel for relu behind plain packed weights/, {
      gated: false,
      rows: { gather: false },
      activation: { kind: "relu" },
    });
    const projection = device.packed({ count: 1 });
    assert.throws(
      () => device.encode(projectAll(device, { projection })),
      /rows\.from is "all", and the weights are packed/,
    );
  });
});

/** Whether a first product takes less time packed: of so many matrices of n rows and k columns, with so many rows of x on average. */
async function pays(matrices: number, n: number, k: number, rows: number, speed: number) {
  const { context } = await FakeDevice.open({ memoryBytesPerSecond: speed });
  const buckets = { weightBytes: 3 * matrices * n * k };
  const made = { gather: true, mostTokens: rows * matrices, topK: 1, buckets };
  const spec = { gated: true, bias: false, count: matrices };
  const projection = { spec, element: "bfloat16", n, weightBytes: 2 * matrices * n * k };
  return paysPacked(
    { activation: SILU } as unknown as ProjectOperator,
    made as unknown as BucketRows,
    projection as unknown as CudaProjection,
    { inputScale: null } as unknown as LaneList,
    { context } as unknown as OperatorEncoder,
  );
}

describe("packed weights beside plain ones", () => {
  const H100 = 3.35e12;
  const H200 = 4.8e12;
  for (const [shape, [matrices, n, k], mostRows] of [
    ["matrices of 6 MB", [128, 1536, 2048], { [H100]: 48, [H200]: 32 }],
    ["large matrices", [8, 28672, 4096], { [H100]: 64, [H200]: 32 }],
    ["few pieces", [8, 2048, 2048], { [H100]: 16, [H200]: 0 }],
    ["few pieces of large matrices", [4, 4096, 14336], { [H100]: 64, [H200]: 32 }],
  ] as const) {
    it(`are read up to so many rows a matrix: ${shape}`, async () => {
      for (const speed of [H100, H200] as const) {
        const most = mostRows[speed];
        if (most > 0) {
          assert.equal(await pays(matrices, n, k, most, speed), true, `${most} rows, ${speed}`);
        }
        assert.equal(await pays(matrices, n, k, most + 1, speed), false, `${most + 1}, ${speed}`);
      }
    });
  }

  it("are read on the list of experts with few rows, where those with many are kept apart", async () => {
    const facts = { memoryBytesPerSecond: H200, l2Bytes: 1024 };
    // 36 rows an expert.
    const sizes = { experts: 8, topK: 1, mostTokens: 288 };
    const made = await lane(sizes, { gated: true }, { lane: 1 }, SILU, 2 ** 20, facts, true);
    const { device, operator, buffers, lists } = made;
    const projection = await device.beside({ count: 8, gated: true });
    const encoded = device.kernels(device.encode({ ...operator, projection }).work);
    assert.deepEqual(
      encoded.map(({ name }) => name),
      ["project_gated_logistic_bf16_rows128", "project_gated_logistic_bf16_packed32"],
    );
    // By lane and class, the low one first: 9 full tiles and 8 more; 2 and one of each expert that can have 33 rows.
    const [low, tall] = [9 + 8, 2 + 8];
    const told = [
      [32, 32, 0, 16],
      [128, 0x7fffffff, low, 16],
      [32, 32, low + tall, 16],
      [128, 0x7fffffff, 2 * low + tall, 16],
    ];
    assert.deepEqual(device.uploads[0]?.data, Int32Array.of(...told.flat()));
    assert.equal(lists.byteLength, 512 + 2 * (low + tall) * 16);
    const at = ({ values: { tiles, tile_count } }: (typeof encoded)[number]) =>
      [tiles, tile_count].map((address) => Number((address as bigint) - lists.address));
    assert.deepEqual(encoded.map(at), [
      [512 + (2 * low + tall) * 16, 256 + 3 * 16],
      [512 + (low + tall) * 16, 256 + 2 * 16],
    ]);
    assert.deepEqual(
      encoded.map(({ work }) => work.weights),
      [projection.weights, projection.packed.weights],
    );
    const bucket = device.kernel(bucketOf(buffers, { lanes: 2 }, sizes));
    assert.equal(bucket.values["classes"], 2);
    // Four programs share each of the four lists, nine fill.
    assert.deepEqual(bucket.grid, { x: 25, y: 1, z: 1 });
  });

  it("take in a bias at the same place in all classes, also where pieces may not be counted", async () => {
    const facts = { memoryBytesPerSecond: H200, l2Bytes: 1024 };
    const sizes = { experts: 8, topK: 1, mostTokens: 256 };
    const spec = { count: 8, gated: true, bias: true, inputs: 1000 };
    const { device, operator } = await lane(sizes, spec, {}, SILU, 2 ** 20, facts, true);
    for (const counts of [true, false]) {
      const projection = await device.beside(spec);
      const encoded = device.kernels(device.encode({ ...operator, projection }).work);
      const [, ...packed] = encoded;
      assert.deepEqual(
        encoded.map(({ name }) => name.replace(/.*_/, "")),
        ["many128", "packed64", "packed32"],
      );
      for (const { values } of packed) {
        assert.equal(Number(values["options"]) & BIAS_LAST, 0);
        assert.equal(walkOf(values["options"]).length > 0, counts);
      }
    }
  });

  it("are not read where the L2 holds the plain ones", async () => {
    assert.equal(await pays(8, 1024, 512, 1, H100), false);
    assert.equal(await pays(80, 1024, 512, 1, H100), true);
  });
});
