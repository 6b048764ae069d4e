/** What is wrong with an operator is found before any work is written down, and named. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { DeviceBuffer, Projection } from "../../../../src/execution/device.ts";
import type { Activation, Operator, RoutingRule } from "../../../../src/execution/operators.ts";
import type { DType } from "../../../../src/tensor.ts";
import { FakeBuffer, FakeDevice } from "./harness.ts";
import {
  bucketOf,
  combineOf,
  decodeOf,
  projectAll,
  routeOf,
  SIZES,
  stepBuffers,
} from "./operators.ts";

const device = await FakeDevice.open();
const buffers = stepBuffers(device);
const stranger = new FakeBuffer({}, 0n, 2 ** 30, "of another device");

function refused(operator: Operator, message: RegExp, name = "InvalidArgumentError"): void {
  assert.throws(() => device.encode(operator), { name, message });
}

const rule = (changes: Partial<RoutingRule>): RoutingRule => ({
  scoring: "softmax",
  renormalize: false,
  scale: 1,
  ...changes,
});

describe("an operator", () => {
  it("must be one", () => {
    refused({ kind: "sort" } as unknown as Operator, /is no operator\. Its kind must be route, /);
    refused(null as unknown as Operator, /null is no operator/);
  });

  it("has sizes that are whole numbers in range", () => {
    for (const experts of [0, 2.5, Number.NaN]) {
      refused(
        routeOf(buffers, { experts }),
        /route: experts is (0|2\.5|NaN)\. Use a whole number, 1 or more\./,
      );
    }
    const large = { ...SIZES, experts: 1025, mostTokens: 1 };
    refused(
      routeOf(stepBuffers(device, large), {}, large),
      /route: experts is 1025\. Use at most 1024\./,
    );
    refused(routeOf(buffers, { topK: 41 }), /route: topK is 41\. Use a whole number from 1 to 32/);
    const few = { ...SIZES, experts: 2 };
    refused(
      bucketOf(stepBuffers(device, few), {}, few),
      /bucket: topK is 3\. Use a whole number from 1 to 2\./,
    );
    refused(bucketOf(buffers, { lanes: 0 }), /bucket: lanes is 0/);
    refused(bucketOf(buffers, { mostTokens: -1 }), /bucket: mostTokens is -1/);
    refused(
      bucketOf(buffers, { mostTokens: 2 ** 30 }),
      /mostTokens is 1073741824, which at topK 3 is \d+ slots\. Use fewer .*: at most 715827882\./,
    );
    for (const capacityFactor of [0, -1, Number.POSITIVE_INFINITY, Number.NaN]) {
      refused(bucketOf(buffers, { capacityFactor }), /bucket: capacityFactor is /);
    }
    refused(combineOf(device, { width: 0 }), /combine: width is 0/);
    const all = projectAll(device);
    refused(
      { ...all, rows: { ...all.rows, from: "all", matrix: 1 } as typeof all.rows },
      /project: rows\.matrix is 1\. Use a whole number from 0 to 0\./,
    );
  });

  it("has words it knows", () => {
    refused(
      routeOf(buffers, { rule: rule({ scoring: "best" as "softmax" }) }),
      /route: rule\.scoring is "best"\. Use one of softmax, sigmoid, /,
    );
    refused(combineOf(device, { mode: "max" as "sum" }), /combine: mode is "max"\. Use one of sum/);
    refused(
      bucketOf(buffers, { rowType: "int32" }),
      /bucket: rowType is "int32"\. Use one of bfloat16, float16, float32\./,
    );
    refused(
      combineOf(device, { outputType: "float16" }),
      /combine: outputType is "float16"\. Use one of bfloat16, float32\./,
    );
    const all = projectAll(device);
    refused(
      { ...all, activation: { kind: "tanh" } as unknown as Activation },
      /project: activation\.kind is "tanh"\. Use one of silu, /,
    );
    refused(
      { ...all, rows: { from: "some" } as unknown as typeof all.rows },
      /project: rows\.from is "some"\. Use one of all, bucket\./,
    );
  });

  it("has arguments that go together", () => {
    const sum = /Only softmax and sigmoid renormalise/;
    refused(routeOf(buffers, { rule: rule({ scoring: "topk-softmax", renormalize: true }) }), sum);
    const groups = (experts: number, changes: object, message: RegExp, topK = 3) => {
      const sizes = { ...SIZES, experts, topK };
      const groupLimit = { groups: 8, keep: 4, score: "max" as const, ...changes };
      refused(routeOf(stepBuffers(device, sizes), { rule: rule({ groupLimit }) }, sizes), message);
    };
    groups(41, {}, /41 experts cannot be divided into 8 even groups/);
    groups(40, { keep: 9 }, /rule\.groupLimit\.keep is 9\. Use a whole number from 1 to 8\./);
    groups(40, { groups: 0 }, /rule\.groupLimit\.groups is 0/);
    groups(8, { score: "top2-sum" }, /top2-sum needs groups of 2 experts or more/);
    groups(40, { score: "mean" }, /rule\.groupLimit\.score is "mean"/);
    groups(40, { keep: 1 }, /1 groups of 5 experts are fewer than topK, 6/, 6);
    refused(
      routeOf(buffers, {
        rule: rule({
          scoring: "topk-sigmoid",
          groupLimit: { groups: 8, keep: 4, score: "max" },
        }),
      }),
      /rule\.groupLimit is set with topk-sigmoid/,
    );
    refused(routeOf(buffers, { rule: rule({ jitter: 0.1 }) }), /jitter is set with softmax/);
    refused(
      routeOf(buffers, { rule: rule({ scoring: "sparsemixer" }) }),
      /rule\.jitter is NaN\. Use a finite number/,
    );
    refused(
      routeOf(buffers, { rule: rule({ scoring: "sparsemixer", jitter: -1 }) }),
      /rule\.jitter is -1\. Use 0 or more/,
    );
    refused(routeOf(buffers, { rule: rule({ scale: Number.NaN }) }), /rule\.scale is NaN/);
    const clamped: Activation = { kind: "swiglu-clamped", alpha: 1, limit: 7 };
    refused(projectAll(device, { activation: clamped }), /Use a gated projection/);
    const gated = device.projection({ gated: true });
    refused(
      projectAll(device, { projection: gated, activation: { ...clamped, alpha: Number.NaN } }),
      /project: activation\.alpha is NaN/,
    );
    const scale = device.buffer(40);
    refused(
      combineOf(device, { sharedScale: scale }),
      /combine: sharedScale is set without shared/,
    );
    for (const name of ["shared", "residual"] as const) {
      refused(
        combineOf(device, { mode: "concat", [name]: device.buffer(10 * 128 * 2) }),
        new RegExp(`combine: ${name} is set with concat\\. Only sum adds it\\.`),
      );
    }
  });

  it("has buffers and projections of its device", () => {
    const foreign =
      /is not a buffer of this device\. Allocate it with this device's allocate\(\)\./;
    refused(
      routeOf(buffers, { logits: stranger }),
      /^route: logits is not a buffer of this device/,
    );
    refused(combineOf(device, { weights: stranger }), foreign);
    refused(bucketOf(buffers, { ids: null as unknown as DeviceBuffer }), foreign);
    refused(
      { ...projectAll(device), projection: { spec: {} } as unknown as Projection },
      /project: projection is not a projection of this device\. Create it with/,
    );
  });

  it("has them open", () => {
    const closed = device.buffer(4, "gone");
    closed[Symbol.dispose]();
    refused(
      routeOf(buffers, { tokens: closed }),
      /route: tokens \("gone"\) is closed/,
      "DisposedError",
    );
    const projection = device.projection({ count: 1 });
    const operator = projectAll(device, { projection });
    projection[Symbol.dispose]();
    refused(operator, /project: projection \("weights"\) is closed/, "DisposedError");
  });

  it("has room for the most tokens there can be, in the type of its rows", () => {
    const short = (operator: Operator, name: string, needs: number) => {
      let owner = operator as unknown as Record<string, unknown>;
      const path = name.split(".");
      for (const step of path.slice(0, -1)) {
        const copy = { ...(owner[step] as object) } as Record<string, unknown>;
        owner[step] = copy;
        owner = copy;
      }
      owner[path.at(-1) as string] = device.buffer(needs - 1, "small");
      refused(
        operator,
        new RegExp(
          `${operator.kind}: ${name.replace(".", "\\.")} \\("small"\\) has ${needs - 1} bytes and needs ${needs}\\. Allocate it larger`,
        ),
      );
    };
    short(routeOf(buffers), "logits", 100 * 40 * 4);
    short(routeOf(buffers), "ids", 1200);
    short(routeOf(buffers), "weights", 1200);
    short(routeOf(buffers), "counts", 160);
    short(routeOf(buffers, { selectionBias: buffers.counts }), "selectionBias", 160);
    short(bucketOf(buffers), "buckets.offsets", 164);
    short(bucketOf(buffers), "buckets.order", 1200);
    short(bucketOf(buffers), "buckets.inverse", 1200);
    short(bucketOf(buffers), "buckets.laneOf", 160);
    for (const [input, bytes] of [
      ["bfloat16", 2],
      ["float32", 4],
    ] satisfies [DType, number][]) {
      const projection = device.projection({ count: 1, dtype: input, input });
      short(projectAll(device, { projection }), "input", 100 * 128 * bytes);
      short(projectAll(device, { projection }), "output", 100 * 128 * bytes);
    }
    short(combineOf(device), "rows", 30 * 128 * 2);
    short(combineOf(device), "inverse", 120);
    short(combineOf(device), "output", 10 * 100 * 4);
    short(combineOf(device, { mode: "concat" }), "output", 30 * 100 * 4);
    short(combineOf(device), "weights", 120);
    short(combineOf(device), "shared", 10 * 128 * 2);
    short(combineOf(device), "residual", 10 * 128 * 2);
    short(decodeOf(device), "inner", 12 * 128 * 2);
    short(decodeOf(device), "input", 4 * 128 * 2);
    short(decodeOf(device), "ids", 48);
    short(decodeOf(device), "inputScale", 48);
    short(decodeOf(device), "output", 4 * 100 * 4);
  });

  it("writes buffers of its own", () => {
    const both = device.buffer(10 * 128 * 2 * 3, "both");
    refused(
      combineOf(device, { rows: both, output: both }),
      /combine: output \("both"\) is also another argument\. An operator cannot work in place/,
    );
    const ids = device.buffer(1200, "both");
    refused(routeOf(buffers, { ids, weights: ids }), /route: ids \("both"\) is also another/);
  });

  it("leaves no launch behind when it is refused, nor when it is disposed of", () => {
    const operator = decodeOf(device);
    const encoded = device.encode(operator);
    const [first, second] = encoded.work.map(
      (work) => work.kind === "kernel" && work.launch.config,
    );
    encoded[Symbol.dispose]();
    encoded[Symbol.dispose]();
    // Refused at the very end, when both launches are written down.
    refused({ ...operator, output: operator.inner }, /decode: inner \("inner"\) is also another/);
    const again = device
      .encode(operator)
      .work.map((work) => work.kind === "kernel" && work.launch.config);
    assert.deepEqual(new Set(again), new Set([first, second]));
  });

  it("holds on to what it uses", () => {
    const operator = combineOf(device);
    const { resources } = device.encode(operator);
    for (const buffer of [operator.tokens, operator.rows, operator.inverse, operator.output]) {
      assert.ok(resources.some((held) => held === buffer));
    }
  });
});
