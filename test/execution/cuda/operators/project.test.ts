/** `project` as work: which kernel, which tiles, which values. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import {
  DENSE_SHARES,
  expertTileRows,
  tileRows,
} from "../../../../src/execution/cuda/operators/choice.ts";
import type { ProjectionSpec } from "../../../../src/execution/device.ts";
import type { Activation, BucketRows } from "../../../../src/execution/operators.ts";
import { type FakeBuffer, FakeDevice } from "./harness.ts";
import { lane, projectAll, walkOf } from "./operators.ts";

const CLAMPED: Activation = { kind: "swiglu-clamped", alpha: 1.702, limit: 7 };

const MANY = { slots: 5000, experts: 1, weightBytes: undefined };

describe("the height of tiles", () => {
  for (const [capability, precision, element, heights] of [
    [[9, 0], "ieee", "bfloat16", [16, 16, 32, 32, 64, 64, 128, 128]],
    [[9, 0], "ieee", "float16", [16, 16, 32, 32, 64, 64, 128, 128]],
    [[9, 0], "ieee", "float32", [16, 16, 64, 16, 64, 64, 64, 64]],
    [[9, 0], "tf32", "float32", [16, 16, 64, 16, 64, 64, 64, 64]],
    [[8, 0], "ieee", "bfloat16", [16, 16, 64, 64, 64, 64, 128, 128]],
    [[12, 1], "ieee", "bfloat16", [64, 64, 64, 64, 64, 64, 64, 64]],
    [[12, 1], "ieee", "float32", [64, 64, 64, 64, 64, 64, 64, 64]],
  ] as const) {
    it(`of ${element} (${precision}) on ${capability.join(".")} follows the even share`, async () => {
      const device = await FakeDevice.open({ capability }, precision);
      const weightBytes = 2 * device.context.facts.l2Bytes;
      const [low, middle] = element === "float32" ? [8, 8] : [2, 16];
      const found = [0.01, low, low + 0.5, middle, middle + 0.5, 48, 49, 5000].map((share) =>
        expertTileRows(device.context, element, { slots: 2 * share, experts: 2, weightBytes }),
      );
      assert.deepEqual(found, heights);
      const dense = [0.01, 8, 8.5, 128, 129, 5000].map((share) =>
        tileRows(device.context, element, share, DENSE_SHARES),
      );
      // There are none of 32 rows in between.
      assert.deepEqual(dense, [...heights.slice(0, 2), ...heights.slice(4)]);
    });
  }

  it("is never more than what every product's kernels take", async () => {
    // An 8.6's blocks have less shared memory: here, not enough for the tallest kernels.
    const device = await FakeDevice.open({ capability: [8, 6], sharedPerBlockOptin: 200 * 100 });
    assert.equal(expertTileRows(device.context, "bfloat16", MANY), 64);
  });

  it("is lower up to a larger share where the L2 holds all weights", async () => {
    const { context } = await FakeDevice.open();
    const heights = (weightBytes?: number) =>
      [2, 3, 8, 9, 16, 17, 48, 49, 1024, 1025].map((share) =>
        expertTileRows(context, "bfloat16", { slots: 8 * share, experts: 8, weightBytes }),
      );
    const { l2Bytes } = context.facts;
    assert.deepEqual(heights(l2Bytes), [16, 16, 16, 64, 64, 64, 64, 64, 64, 128]);
    const usual = [16, 32, 32, 32, 32, 64, 64, 128, 128, 128];
    assert.deepEqual(heights(l2Bytes + 1), usual);
    assert.deepEqual(heights(8 * l2Bytes), usual);
    // Of experts that the L2 cannot hold even one of, tiles are taller.
    const large = [16, 32, 32, 64, 64, 64, 64, 128, 128, 128];
    assert.deepEqual(heights(8 * l2Bytes + 8), large);
    assert.deepEqual(heights(), large);
  });
});

describe("a product of all rows", () => {
  it("is a dense launch with one matrix", async () => {
    const device = await FakeDevice.open();
    const projection = device.projection({ count: 3, gated: true, bias: true });
    const tokens = device.buffer(4);
    const operator = projectAll(device, {
      projection,
      activation: { kind: "silu" },
      rows: { from: "all", tokens, mostTokens: 100, matrix: 2 },
    });
    const { name, values, grid, work } = device.kernel(operator);
    assert.equal(name, "project_gated_logistic_extras_bf16_rows64");
    const { w, ...rest } = values;
    assert.equal((w as Uint8Array).length, 128);
    assert.equal((w as Uint8Array)[0], 1, "the first tensor map made");
    assert.deepEqual(device.maps, [
      {
        address: projection.address,
        element: "bfloat16",
        // Two panels a matrix.
        shape: [3 * 2 * 256, 64],
        box: [256, 64],
        swizzle: 3,
        l2Promotion: 2,
      },
    ]);
    assert.deepEqual(rest, {
      x: (operator.input as FakeBuffer).address,
      w_shape0: 0,
      w_shape1: 0,
      w_stride0: 0,
      w_stride1: 0,
      bias: projection.bias(0),
      out: (operator.output as FakeBuffer).address,
      tiles: 0n,
      tile_count: tokens.address,
      order: 0n,
      input_scale: 0n,
      n: 256,
      k: 128,
      x_pitch: 128,
      out_pitch: 128,
      top_k: 1,
      dense_matrix: 2,
      group: 8,
      options: 8 | 2,
      code: 4,
      linear: 1,
      cubic: 0,
      limit: Number.POSITIVE_INFINITY,
      shift: 0,
      global_scratch: 0n,
      profile_scratch: 0n,
    });
    // Two row tiles by one run of columns.
    assert.deepEqual(grid, { x: 2, y: 1, z: 1 });
    assert.deepEqual([work.persistent, work.budgeted], [true, true]);
    device.encode(operator);
    assert.equal(device.maps.length, 1, "a box's tensor map is made once");
  });

  for (const [element, gated, activation, bias, name] of [
    ["bfloat16", true, { kind: "silu" }, false, "project_gated_logistic_bf16_rows64"],
    ["bfloat16", true, { kind: "gelu-tanh" }, false, "project_gated_logistic_bf16_rows64"],
    ["float16", true, CLAMPED, true, "project_gated_logistic_extras_fp16_rows64"],
    ["bfloat16", true, { kind: "gelu" }, false, "project_gated_coded_extras_bf16_rows64"],
    ["bfloat16", true, { kind: "none" }, false, "project_gated_coded_extras_bf16_rows64"],
    ["bfloat16", false, { kind: "none" }, false, "project_plain_identity_bf16_rows64"],
    ["float16", false, { kind: "none" }, true, "project_plain_identity_extras_fp16_rows64"],
    ["bfloat16", false, { kind: "silu" }, false, "project_plain_coded_extras_bf16_rows64"],
    ["float16", false, { kind: "relu" }, true, "project_plain_coded_extras_fp16_rows64"],
    ["float32", true, { kind: "silu" }, false, "project_gated_coded_extras_fp32_rows64"],
    ["float32", false, { kind: "none" }, true, "project_plain_coded_extras_fp32_rows64"],
  ] as const) {
    it(`of ${element}, ${gated ? "gated" : "plain"}, ${activation.kind}${bias ? ", bias" : ""} takes ${name}`, async () => {
      const device = await FakeDevice.open();
      const projection = device.projection({ dtype: element, input: element, gated, bias });
      assert.equal(device.kernel(projectAll(device, { projection, activation })).name, name);
      if (element !== "float32") return;
      const rounded = await FakeDevice.open({}, "tf32");
      const other = rounded.projection({ dtype: element, input: element, gated, bias });
      assert.equal(
        rounded.kernel(projectAll(rounded, { projection: other, activation })).name,
        name.replace("fp32", "tf32"),
      );
    });
  }

  it("takes taller kernels for more rows, and lists' heights where there is none so low", async () => {
    const device = await FakeDevice.open();
    const name = (mostTokens: number, activation: Activation) =>
      device.kernel(projectAll(device, { activation }, mostTokens)).name;
    assert.equal(name(8, { kind: "none" }), "project_plain_identity_bf16_rows16");
    assert.equal(name(129, { kind: "none" }), "project_plain_identity_bf16_rows128");
    assert.equal(name(8, { kind: "gelu" }), "project_plain_coded_extras_bf16_rows64");
    assert.equal(name(129, { kind: "gelu" }), "project_plain_coded_extras_bf16_rows128");
  });

  it("reads several panels at once where a step of its kernel does", async () => {
    const device = await FakeDevice.open();
    const projection = device.projection({ count: 3, gated: true });
    const activation: Activation = { kind: "silu" };
    const { name, values } = device.kernel(projectAll(device, { projection, activation }, 8));
    assert.equal(name, "project_gated_logistic_bf16_rows16");
    assert.equal((values["w"] as Uint8Array)[0], 1, "the first tensor map made");
    assert.deepEqual(
      device.maps.map(({ shape, box }) => ({ shape, box })),
      [{ shape: [3, 2, 256, 64], box: [1, 2, 128, 64] }],
    );
    const told = ["shape", "stride"].flatMap((each) => [0, 1, 2, 3].map((d) => `w_${each}${d}`));
    assert.deepEqual(
      told.map((field) => values[field]),
      told.map(() => 0),
    );
    // A taller tile's box is another map of the same weights.
    device.kernel(projectAll(device, { projection, activation }, 100));
    device.kernel(projectAll(device, { projection, activation }, 8));
    assert.deepEqual(
      device.maps.map(({ address, shape }) => [address, shape.length]),
      [
        [projection.address, 4],
        [projection.address, 2],
      ],
    );
  });

  it("has the numbers of its activation", async () => {
    const device = await FakeDevice.open();
    const numbers = (activation: Activation, gated: boolean) => {
      const { values } = device.kernel(
        projectAll(device, { projection: device.projection({ gated }), activation }),
      );
      return ["code", "linear", "cubic", "limit", "shift"].map((name) => values[name]);
    };
    const infinite = Number.POSITIVE_INFINITY;
    assert.deepEqual(numbers(CLAMPED, true), [4, Math.fround(1.702), 0, 7, 1]);
    assert.deepEqual(numbers({ kind: "relu" }, false), [1, 0, 0, infinite, 0]);
    assert.deepEqual(numbers({ kind: "gelu-tanh" }, true), [
      4,
      Math.fround(1.5957691216057308),
      Math.fround(0.07135481627260025),
      infinite,
      0,
    ]);
  });

  it("fills its budget, and no more than there can be tiles", async () => {
    const device = await FakeDevice.open();
    const projection = device.projection({ outputs: 1000 });
    const { work } = device.kernel(projectAll(device, { projection }, 1000));
    // 8 tiles of 128 rows by 4 runs of 256 columns.
    assert.deepEqual(
      [1, 7, 32, 132].map((units) => work.blocks(units)),
      [1, 7, 32, 32],
    );
  });
});

describe("a lane's product", () => {
  it("reads its lane's list of tiles", async () => {
    const sizes = { experts: 8, topK: 2, mostTokens: 1000 };
    const { device, operator, buffers, lists } = await lane(sizes, { gated: true });
    const { name, values, work } = device.kernel({ ...operator, activation: { kind: "silu" } });
    // 250 rows an expert.
    assert.equal(name, "project_gated_logistic_bf16_rows128");
    const most = Math.floor(2000 / 128) + 8;
    assert.equal(values["tiles"], lists.address + 512n + BigInt(most * 16));
    assert.equal(values["tile_count"], lists.address + 256n + 16n);
    assert.equal(values["order"], buffers.buckets.order.address);
    // Gathered, in half the time, weights read once.
    assert.equal(values["options"], 1 | 16 | 128);
    assert.deepEqual([values["top_k"], values["dense_matrix"], values["group"]], [2, 0, 8]);
    assert.equal(work.blocks(10_000), most * 1);
    assert.equal(work.budgeted, true);
  });

  it("has pieces dealt, in step or claimed, and tall tiles of few rows take half the time, by rows and size of a matrix", async () => {
    const walk = async (mostTokens: number, inputs: number, weightBytes?: number) => {
      const sizes = { experts: 8, topK: 2, mostTokens };
      const none = { kind: "none" } as const;
      const spec = { inputs, outputs: 1024 };
      const { device, operator } = await lane(sizes, spec, {}, none, weightBytes);
      return walkOf(device.kernel(operator).values["options"]);
    };
    const { facts } = (await FakeDevice.open()).context;
    /** Inputs of a matrix of at most this share of the L2. */
    const inputs = (share: number) => Math.floor((facts.l2Bytes * share) / 2 / 1024 / 64) * 64;
    const small = inputs(1 / 4);
    const large = small + 64;
    const fits = inputs(1);
    const exceeds = fits + 64;
    const claimed = ["half", "claimed"];
    const inStep = ["in step"];
    // A share of 2, 4, 48, 49, 64, 65, 128, 129, 256 and 257 rows: with small matrices, large ones and those beyond the L2.
    for (const [tokens, ofSmall, ofLarge, beyond] of [
      [8, [], [], []],
      [16, inStep, inStep, inStep],
      [192, inStep, inStep, inStep],
      [196, claimed, claimed, inStep],
      [256, claimed, claimed, inStep],
      [260, claimed, claimed, inStep],
      [512, claimed, claimed, inStep],
      [516, ["half"], inStep, inStep],
      [1024, ["half"], inStep, inStep],
      [1028, [], inStep, inStep],
    ] as const) {
      assert.deepEqual(await walk(tokens, small), ofSmall, `${tokens} tokens`);
      assert.deepEqual(await walk(tokens, large), ofLarge, `${tokens} tokens`);
      assert.deepEqual(await walk(tokens, fits), ofLarge, `${tokens} tokens`);
      assert.deepEqual(await walk(tokens, exceeds), beyond, `${tokens} tokens`);
      // Weights that the L2 holds get tiles of 64 rows.
      const inCache = await walk(tokens, small, facts.l2Bytes);
      assert.deepEqual(inCache, []);
    }
  });

  it("starts early, but not a first product on tall tiles, and one that does not gather behind products only", async () => {
    const early = async (mostTokens: number, gather: boolean) => {
      const { device, operator } = await lane({ experts: 8, topK: 2, mostTokens }, {}, { gather });
      const { work } = device.kernel(operator);
      return [true, false].map((product) => work.early(work.blocks(1000), { ...work, product }));
    };
    // What is in front: a product, or something else. Rows a matrix: 2, 48 and 256.
    assert.deepEqual(await early(8, true), [true, true]);
    assert.deepEqual(await early(192, true), [true, true]);
    assert.deepEqual(await early(1024, true), [false, false]);
    assert.deepEqual(await early(8, false), [true, false]);
    assert.deepEqual(await early(192, false), [true, false]);
    assert.deepEqual(await early(1024, false), [true, false]);
  });

  it("takes input scales and rows as they stand", async () => {
    const sizes = { experts: 8, topK: 2, mostTokens: 8 };
    const { device, operator, buffers } = await lane(sizes, { bias: true }, { gather: false });
    assert.equal(device.kernel(operator).values["options"], 2 | 128);
    assert.equal(device.kernel(operator).name, "project_plain_identity_extras_bf16_rows16");
    const scaled = { ...operator.rows, inputScale: buffers.weights, gather: false };
    const { values } = device.kernel({ ...operator, rows: scaled });
    assert.equal(values["options"], 2 | 4 | 128);
    assert.equal(values["input_scale"], buffers.weights.address);
  });

  it("takes a kernel that is taller than the tiles where it must", async () => {
    const sizes = { experts: 8, topK: 2, mostTokens: 20 };
    const { device, operator } = await lane(sizes, {}, {}, { kind: "relu" });
    assert.equal(device.kernel(operator).name, "project_plain_coded_extras_bf16_rows64");
  });

  it("is refused without lists of its sizes", async () => {
    const sizes = { experts: 8, topK: 2, mostTokens: 20 };
    const { device, operator } = await lane(sizes);
    const refused = (rows: Partial<BucketRows>, projection = operator.projection) =>
      assert.throws(
        () =>
          device.encode({
            ...operator,
            projection,
            rows: { ...operator.rows, ...rows } as BucketRows,
          }),
        {
          name: "InvalidArgumentError",
          message: /project: rows\.buckets have no work lists for \d+ experts, \d+ lanes, topK \d/,
        },
      );
    refused({ lanes: 3 });
    refused({ topK: 1 });
    refused({ mostTokens: 19 });
    refused({}, device.projection({ count: 7 }));
    assert.throws(
      () => device.encode({ ...operator, rows: { ...operator.rows, lane: 2 } }),
      /project: rows\.lane is 2\. Use a whole number from 0 to 1\./,
    );
  });
});

describe("a gate", () => {
  const gate = (device: FakeDevice, spec: Partial<ProjectionSpec>) =>
    device.projection({ count: 1, output: "float32", outputs: 40, ...spec });

  for (const [dtype, input, mostTokens, name, grid] of [
    ["bfloat16", "bfloat16", 4, "gate_bf16_bf16_few", { x: 40, y: 4, z: 1 }],
    ["float32", "bfloat16", 51, "gate_bf16_fp32_few", { x: 40, y: 51, z: 1 }],
    ["float32", "bfloat16", 52, "gate_bf16_fp32_some", { x: 3, y: 4, z: 1 }],
    ["float16", "bfloat16", 1638, "gate_bf16_fp32_some", { x: 3, y: 103, z: 1 }],
    ["float16", "float16", 1639, "gate_fp16_fp16_many", { x: 2, y: 26, z: 1 }],
    ["float32", "float32", 20000, "gate_fp32_fp32_most", { x: 1, y: 157, z: 1 }],
    ["bfloat16", "float32", 1, "gate_fp32_fp32_few", { x: 40, y: 1, z: 1 }],
  ] as const) {
    it(`of ${dtype} weights on up to ${mostTokens} ${input} rows takes ${name}`, async () => {
      const device = await FakeDevice.open();
      const projection = gate(device, { dtype, input, bias: true });
      const operator = projectAll(
        device,
        { projection, activation: { kind: "sigmoid" } },
        mostTokens,
      );
      const kernel = device.kernel(operator);
      assert.equal(kernel.name, name);
      assert.deepEqual(kernel.grid, grid);
      assert.deepEqual([kernel.work.persistent, kernel.work.budgeted], [false, false]);
      const { values } = kernel;
      assert.deepEqual(
        ["n", "k", "x_pitch", "options"].map((field) => values[field]),
        [40, 128, 128, 3],
      );
      assert.equal(values["w"], projection.address);
      assert.equal(values["bias"], projection.bias(0));
    });
  }

  it("refuses what gates cannot do", async () => {
    const device = await FakeDevice.open();
    const operator = projectAll(device, { projection: gate(device, {}) });
    assert.throws(
      () => device.encode({ ...operator, activation: { kind: "silu" } }),
      /project: activation\.kind is "silu"\. Use one of none, sigmoid\./,
    );
    assert.throws(
      () => device.encode({ ...operator, rows: { from: "bucket" } as unknown as BucketRows }),
      /rows\.from is "bucket"\. A projection to float32 takes rows from "all"/,
    );
    const { values } = device.kernel(operator);
    assert.deepEqual([values["options"], values["bias"]], [0, 0n]);
  });
});
