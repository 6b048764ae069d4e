/**
 * A whole step through the real operators and the bundle that ships, on the fake driver:
 * kernels do nothing there, but every launch is written down, captured and run.
 */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { describe, it } from "node:test";
import {
  type Manifest,
  parameterBytes,
  parseManifest,
} from "../../../src/execution/cuda/bundle/manifest.ts";
import { type CudaDevice, openOnDriver } from "../../../src/execution/cuda/device.ts";
import { rowBytes, type Stream } from "../../../src/execution/device.ts";
import type { DType } from "../../../src/tensor.ts";
import { normal, randomFor } from "../../support/seed.ts";
import { FakeDriver } from "./fake-driver.ts";
import { bucketOf, routeOf } from "./operators/operators.ts";

const [TOKENS, EXPERTS, TOP_K, HIDDEN, INNER] = [100, 20, 3, 70, 130];
const SLOTS = TOKENS * TOP_K;

function readManifest(): Manifest {
  const file = new URL("../../../../kernels/bundle/manifest.json", import.meta.url);
  return parseManifest(readFileSync(file, "utf8"), file.pathname);
}

/** A driver that knows the parameters of every image in the bundle. */
function driverFor({ kernels }: Manifest): FakeDriver {
  const byHash = new Map(kernels.map((kernel) => [kernel.image.sha256, kernel]));
  const driver = new FakeDriver();
  driver.parametersOf = (image) => {
    const text = image.at(-1) === 0 ? image.subarray(0, -1) : image;
    const kernel =
      byHash.get(createHash("sha256").update(image).digest("hex")) ??
      byHash.get(createHash("sha256").update(text).digest("hex"));
    return (kernel?.args ?? []).map(parameterBytes);
  };
  return driver;
}

async function runStep(device: CudaDevice, dtype: DType): Promise<void> {
  const hidden = device.rowLayout(HIDDEN, dtype);
  const inner = device.rowLayout(INNER, dtype);
  const room = (bytes: number, label: string) => device.allocate(bytes, label);
  const spec = { dtype, input: dtype, bias: true } as const;
  const gate = device.createProjection(
    { ...spec, count: 1, inputs: HIDDEN, outputs: EXPERTS, output: "float32", gated: false },
    "gate",
  );
  const up = device.createProjection(
    { ...spec, count: EXPERTS, inputs: HIDDEN, outputs: INNER, output: "rows", gated: true },
    "up",
  );
  const down = device.createProjection(
    { ...spec, count: EXPERTS, inputs: INNER, outputs: HIDDEN, output: "rows", gated: false },
    "down",
  );
  for (const projection of [gate, up, down]) await device.fillUniform(projection, 1, 0.1);
  const elements = INNER * HIDDEN;
  const data = dtype === "float32" ? new Float32Array(elements) : new Uint16Array(elements);
  await up.write(EXPERTS - 1, "value", {
    dtype,
    data,
    offset: 0,
    rows: INNER,
    columns: HIDDEN,
    rowStride: 1,
    columnStride: INNER,
  });
  up.writeBias(1, "gate", new Float32Array(INNER).fill(1));
  const buffers = {
    tokens: room(4, "tokens"),
    input: room(rowBytes(hidden, TOKENS), "input"),
    logits: room(TOKENS * EXPERTS * 4, "logits"),
    ids: room(SLOTS * 4, "ids"),
    weights: room(SLOTS * 4, "weights"),
    counts: device.allocate(EXPERTS * 4, "counts", { mirrored: true }),
    middle: room(rowBytes(inner, SLOTS), "middle"),
    rows: room(rowBytes(hidden, SLOTS), "rows"),
    output: room(TOKENS * HIDDEN * 4, "output"),
  };
  const { tokens, input, logits, ids, weights, counts, middle, rows, output } = buffers;
  const buckets = {
    offsets: room((EXPERTS + 1) * 4, "offsets"),
    order: room(SLOTS * 4, "order"),
    inverse: room(SLOTS * 4, "inverse"),
    laneOf: room(EXPERTS * 4, "laneOf"),
  };
  const shape = [TOKENS, HIDDEN];
  const states = normal(randomFor("states"), TOKENS * HIDDEN);
  device.writeRows(input, hidden, { dtype: "float32", shape, data: states });
  device.write(tokens, Int32Array.of(TOKENS));
  const [main, other] = [0, 1].map((group) => device.createStream({ group, priority: group })) as [
    Stream,
    Stream,
  ];
  const [bucketed, done] = [device.createEvent("bucketed"), device.createEvent("done")];
  const sizes = { experts: EXPERTS, topK: TOP_K, mostTokens: TOKENS };
  const record = () => {
    main.enqueue({
      kind: "project",
      projection: gate,
      activation: { kind: "none" },
      input,
      output: logits,
      rows: { from: "all", tokens, mostTokens: TOKENS, matrix: 0 },
    });
    main.enqueue(routeOf({ tokens, logits, ids, weights, counts }, {}, sizes));
    main.enqueue(bucketOf({ tokens, ids, buckets }, { rowType: dtype }, sizes));
    main.record(bucketed);
    other.wait(bucketed);
    for (const [lane, stream] of [main, other].entries()) {
      const common = { from: "bucket", buckets, lane, lanes: 2, topK: TOP_K } as const;
      stream.enqueue({
        kind: "project",
        projection: up,
        activation: { kind: "silu" },
        input,
        output: middle,
        rows: { ...common, mostTokens: TOKENS, gather: true },
      });
      stream.enqueue({
        kind: "project",
        projection: down,
        activation: { kind: "none" },
        input: middle,
        output: rows,
        rows: { ...common, mostTokens: TOKENS, gather: false },
      });
    }
    other.record(done);
    main.wait(done);
    main.enqueue({
      kind: "combine",
      mode: "sum",
      topK: TOP_K,
      width: HIDDEN,
      rowType: dtype,
      mostTokens: TOKENS,
      tokens,
      rows,
      inverse: buckets.inverse,
      weights,
      outputType: "float32",
      output,
    });
  };
  record();
  await device.synchronize();
  const graph = device.capture(main, record);
  assert.equal(graph.nodes, 8);
  for (const units of [[], [60, 40], [1, 131]]) {
    device.setComputeBudgets({ realisation: "shared", units });
    await graph.launch();
  }
  await device.read(counts, new Int32Array(EXPERTS));
  await device.read(output, new Float32Array(TOKENS * HIDDEN));
  // All that is made goes again, with what belongs to it.
  graph[Symbol.dispose]();
  const made = [...Object.values(buffers), ...Object.values(buckets), gate, up, down];
  for (const thing of made) thing[Symbol.dispose]();
  await device.synchronize();
}

describe("a step on the fake driver", () => {
  const manifest = readManifest();
  for (const dtype of ["bfloat16", "float16", "float32"] as const) {
    it(`runs in ${dtype}, eagerly and from a graph, and leaves nothing behind`, async () => {
      const driver = driverFor(manifest);
      const device = await openOnDriver(driver);
      const before = device.memory();
      await runStep(device, dtype);
      // The driver checks that there is a kernel in front.
      const early = (name: string) => {
        const launches = driver.launches.filter(({ fn }) => driver.nameOf(fn) === name);
        return new Set(launches.map((launch) => launch.early));
      };
      assert.deepEqual(early("bucket"), new Set([true]));
      // Its few blocks would crowd on a few multiprocessors.
      assert.deepEqual(early("route"), new Set([false]));
      const after = device.memory();
      // Staging stays: one slot of it was needed.
      assert.ok(after.allocations <= before.allocations + 2, `${after.allocations} allocations`);
      await runStep(device, dtype);
      assert.equal(device.memory().usedBytes, after.usedBytes);
      await device.close();
      assert.deepEqual(driver.live, {});
    });
  }
});
