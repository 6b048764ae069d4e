/**
 * What the device can do at best, measured in the same run through the same
 * operators: arithmetic by a large matrix product, weight reading by products of
 * a single row with a matrix that no cache holds. They are what the kernels reach
 * in their best case, not the data sheet's figures.
 */

import type { Device } from "../../execution/device.ts";
import { BYTES_PER_ELEMENT, type DType } from "../../tensor.ts";
import { Random } from "../../workload/random.ts";
import { uniformBlock } from "../../workload/random-layer.ts";

/** Rows, inputs and outputs of the large product. */
const PRODUCT_SIZE = 1024;
/** Weights of the reading test: several times the last-level cache of one processor. */
const STREAM_BYTES = 256 << 20;
const STREAM_INPUTS = 4096;
/** Products of each kind; the fastest counts, because a limit is what is possible. */
const ATTEMPTS = 5;

export interface MachineLimits {
  /** GFLOP/s of a 1024 x 1024 x 1024 product, by element type of the weights. */
  readonly gflops: Readonly<Partial<Record<DType, number>>>;
  /** GB/s of weights read by a one-row product with 256 MiB of float32 weights, which need no unpacking. */
  readonly gigabytesPerSecond: number;
}

export async function measureLimits(
  device: Device,
  dtypes: ReadonlySet<DType>,
): Promise<MachineLimits> {
  const gflops: Partial<Record<DType, number>> = {};
  for (const dtype of dtypes) {
    const seconds = await fastest(device, dtype, PRODUCT_SIZE, PRODUCT_SIZE, PRODUCT_SIZE);
    gflops[dtype] = (2 * PRODUCT_SIZE ** 3) / seconds / 1e9;
  }
  const outputs = STREAM_BYTES / BYTES_PER_ELEMENT.float32 / STREAM_INPUTS;
  const seconds = await fastest(device, "float32", 1, STREAM_INPUTS, outputs);
  return { gflops, gigabytesPerSecond: STREAM_BYTES / seconds / 1e9 };
}

/** Seconds of the fastest of several products, [rows, inputs] x [inputs, outputs]. */
async function fastest(
  device: Device,
  dtype: DType,
  rows: number,
  inputs: number,
  outputs: number,
): Promise<number> {
  const shape = { count: 1, inputs, outputs, dtype, gated: false, bias: false };
  using projection = device.createProjection(shape, "weights of the speed test");
  using input = device.allocate(rows * inputs * 4, "input of the speed test");
  using output = device.allocate(rows * outputs * 4, "output of the speed test");
  using tokens = device.allocate(4, "row count of the speed test");
  using stream = device.createStream({ group: 0, priority: 0 });
  // Written, because memory that was never written may not be there to be read: the system
  // backs it with a single page of zeros. Row r begins at number r, so little is made up.
  const data = uniformBlock(dtype, inputs + outputs, 1, new Random(0));
  const weights = { rows: outputs, columns: inputs, rowStride: 1, columnStride: 1 };
  await projection.write(0, "value", { dtype, data, offset: 0, ...weights });
  device.setComputeBudgets({ realisation: "shared", units: [device.properties.computeUnits] });
  device.write(tokens, Int32Array.of(rows));
  let best = Number.POSITIVE_INFINITY;
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    stream.enqueue({
      kind: "project",
      projection,
      activation: { kind: "none" },
      input,
      output,
      rows: { from: "all", tokens, capacity: rows, matrix: 0 },
    });
    const started = performance.now();
    await device.synchronize();
    best = Math.min(best, (performance.now() - started) / 1000);
  }
  return best;
}
