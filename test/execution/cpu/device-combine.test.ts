/** `combine` on the device against plain sums. */

import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { InvalidArgumentError } from "../../../src/errors.ts";
import { type CpuDevice, openCpuDevice } from "../../../src/execution/cpu/device.ts";
import type { Stream } from "../../../src/execution/device.ts";
import type { CombineOperator } from "../../../src/execution/operators.ts";
import { between, chance, normal, randomFor } from "../../support/seed.ts";
import { errorOf, floats, ints, room, upload } from "./harness.ts";

let device: CpuDevice;
let stream: Stream;
before(async () => {
  device = await openCpuDevice({ threads: 2 });
  stream = device.createStream({ group: 0, priority: 0 });
});
after(() => device.close());

describe("combine", () => {
  it("adds up or lays side by side, whatever is there", async () => {
    const random = randomFor("combine");
    for (let round = 0; round < 120; round++) {
      const mode = chance(random, 0.3) ? "concat" : "sum";
      const topK = between(random, 1, 8);
      const width = between(random, 1, 70);
      const capacity = between(random, 1, 90);
      const tokens = round === 0 ? 0 : between(random, 1, capacity);
      const slots = capacity * topK;
      // Rows in any order, some slots dropped.
      const rank = Array.from({ length: slots }, () => random.uniform());
      const places = [...rank.keys()].sort((a, b) => (rank[a] as number) - (rank[b] as number));
      const inverse = Int32Array.from(places, (row) => (chance(random, 0.1) ? -1 : row));
      const rows = normal(random, slots * width);
      const weights = chance(random, 0.7) ? normal(random, slots) : undefined;
      const extra = () =>
        mode === "sum" && chance(random, 0.5) ? normal(random, capacity * width) : undefined;
      const shared = extra();
      const residual = extra();
      const sharedScale = shared && chance(random, 0.5) ? normal(random, capacity) : undefined;
      const outputWidth = mode === "concat" ? topK * width : width;
      const output = upload(device, new Float32Array(capacity * outputWidth).fill(123));
      const given = { weights, shared, sharedScale, residual };
      const optional = Object.fromEntries(
        Object.entries(given).flatMap(([name, data]) =>
          data ? [[name, upload(device, data)]] : [],
        ),
      );
      stream.enqueue({
        kind: "combine",
        mode,
        topK,
        width,
        output,
        ...optional,
        rowType: "float32",
        mostTokens: capacity,
        outputType: "float32",
        tokens: ints(device, tokens),
        rows: upload(device, rows),
        inverse: upload(device, inverse),
      });
      await device.synchronize();

      const want = new Float64Array(capacity * outputWidth).fill(123);
      for (let t = 0; t < tokens; t++) {
        for (let i = 0; i < outputWidth; i++) {
          const term = (choice: number, column: number) => {
            const slot = t * topK + choice;
            const row = inverse[slot] as number;
            if (row < 0) return 0;
            return (weights?.[slot] ?? 1) * (rows[row * width + column] as number);
          };
          let sum = 0;
          if (mode === "concat") sum = term(Math.floor(i / width), i % width);
          else for (let c = 0; c < topK; c++) sum += term(c, i);
          sum += (sharedScale?.[t] ?? 1) * (shared?.[t * width + i] ?? 0);
          want[t * outputWidth + i] = sum + (residual?.[t * width + i] ?? 0);
        }
      }
      const error = errorOf(await floats(device, output), want);
      assert.ok(error < 1e-6, `${mode} of ${tokens} tokens, ${topK} x ${width}: off by ${error}`);
    }
  });

  it("follows no row that is none", async () => {
    const rows = room(device, 8);
    for (const bad of [-2, 2, 2 ** 30]) {
      stream.enqueue({
        kind: "combine",
        mode: "sum",
        topK: 2,
        width: 4,
        rows,
        output: room(device, 4),
        tokens: ints(device, 1),
        inverse: ints(device, 0, bad),
        rowType: "float32",
        mostTokens: 1,
        outputType: "float32",
      });
      await assert.rejects(
        device.synchronize(),
        new RegExp(`combine: inverse\\[1\\] is ${bad}, which is not a row`),
      );
    }
  });

  it("refuses what does not fit, naming it", () => {
    const shared = room(device, 8);
    const good: CombineOperator = {
      kind: "combine",
      mode: "sum",
      topK: 2,
      width: 4,
      rowType: "float32",
      mostTokens: 2,
      outputType: "float32",
      tokens: ints(device, 1),
      rows: room(device, 16),
      inverse: room(device, 4),
      output: room(device, 8),
    };
    const refused = (change: object, pattern: RegExp) =>
      assert.throws(
        () => stream.enqueue({ ...good, ...change }),
        (error) => error instanceof InvalidArgumentError && pattern.test(error.message),
        String(pattern),
      );
    refused({ mode: "mean" }, /mode is "mean"/);
    refused({ topK: 0 }, /topK is 0/);
    refused({ width: 1.5 }, /width is 1\.5/);
    refused({ rows: room(device, 15) }, /rows .* has 60 bytes and needs 64/);
    refused({ sharedScale: shared }, /sharedScale is set without shared/);
    const concat = { mode: "concat", output: room(device, 16) };
    refused({ ...concat, shared }, /shared is set with concat/);
    refused({ ...concat, residual: shared }, /residual is set with concat/);
    refused({ residual: good.output }, /output .* is also another argument/);
    refused({ rowType: "bfloat16" }, /combine: rowType is bfloat16/);
    refused({ outputType: "float16" }, /combine: outputType is float16/);
    refused({ mostTokens: 0 }, /mostTokens is 0/);
    refused({ mostTokens: 3 }, /inverse .* has 16 bytes and needs 24/);
    refused({ weights: room(device, 3) }, /weights .* has 12 bytes and needs 16/);
  });
});
