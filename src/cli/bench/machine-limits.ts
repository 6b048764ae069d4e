/**
 * What the device can do at best, measured in the same run: arithmetic by the
 * project's own product of large square matrices; memory, on a CPU, by products of a
 * single row with a matrix that no cache holds, and on a GPU by copies from device
 * memory to device memory. They are what the machine was seen to do, not the data
 * sheet's figures; a vendor's library may multiply faster. Machines that others use
 * change speed, so limits are measured again and the larger ones count.
 */

import type { Device, DeviceKind } from "../../execution/device.ts";
import { BYTES_PER_ELEMENT, type DType } from "../../tensor.ts";

/** Rows, inputs and outputs of the large product: enough for every compute unit, in some milliseconds. */
const PRODUCT_SIZE: Readonly<Record<DeviceKind, number>> = { cpu: 1024, cuda: 8192 };
/** Weights of the reading test: several times the last-level cache of one processor. */
const STREAM_BYTES = 256 << 20;
const STREAM_INPUTS = 4096;
/** Bytes of a copy: it takes hundreds of times as long as it takes the host to notice its end. */
const COPY_BYTES = 2 ** 32;
/** Most of the free memory that the two sides of a copy may take. */
const COPY_SHARE = 0.5;
/** Times of each kind; the fastest counts, because a limit is what is possible. */
const ATTEMPTS = 5;

export interface MachineLimits {
  /** GFLOP/s of the product of two square matrices, by element type of the weights. */
  readonly gflops: Readonly<Partial<Record<DType, number>>>;
  /** Rows and columns of these matrices. */
  readonly productSize: number;
  readonly gigabytesPerSecond: number;
  /** How the last was measured: float32 weights of 256 MiB read by a one-row product, or a copy, bytes read and written both counted. */
  readonly memoryTest: "weights read for one row" | "device-to-device copy";
}

export async function measureLimits(
  device: Device,
  dtypes: ReadonlySet<DType>,
): Promise<MachineLimits> {
  const { kind } = device.properties;
  const size = PRODUCT_SIZE[kind];
  const gflops: Partial<Record<DType, number>> = {};
  for (const dtype of dtypes) {
    const seconds = await fastestProduct(device, dtype, size, size, size);
    gflops[dtype] = (2 * size ** 3) / seconds / 1e9;
  }
  if (kind === "cuda") {
    const gigabytesPerSecond = await copyRate(device);
    return { gflops, productSize: size, gigabytesPerSecond, memoryTest: "device-to-device copy" };
  }
  const outputs = STREAM_BYTES / BYTES_PER_ELEMENT.float32 / STREAM_INPUTS;
  const seconds = await fastestProduct(device, "float32", 1, STREAM_INPUTS, outputs);
  const gigabytesPerSecond = STREAM_BYTES / seconds / 1e9;
  return { gflops, productSize: size, gigabytesPerSecond, memoryTest: "weights read for one row" };
}

/** Of two measurements of the same machine the larger figures. */
export function largerOf(a: MachineLimits, b: MachineLimits): MachineLimits {
  const gflops: Partial<Record<DType, number>> = { ...a.gflops };
  for (const [dtype, value] of Object.entries(b.gflops) as [DType, number][]) {
    gflops[dtype] = Math.max(value, gflops[dtype] ?? 0);
  }
  return {
    ...a,
    gflops,
    gigabytesPerSecond: Math.max(a.gigabytesPerSecond, b.gigabytesPerSecond),
  };
}

/** GB/s, of bytes read and bytes written together. */
async function copyRate(device: Device): Promise<number> {
  const { limitBytes, usedBytes } = device.memory();
  const room = Math.floor(((limitBytes - usedBytes) * COPY_SHARE) / 2);
  const bytes = Math.min(COPY_BYTES, room);
  using source = device.allocate(bytes, "source of the copy test");
  using target = device.allocate(bytes, "target of the copy test");
  const seconds = await fastest(async () => {
    await device.copy(target, source, bytes);
    // A copy is under way when its promise resolves; this waits for it.
    await device.synchronize();
  });
  return (2 * bytes) / seconds / 1e9;
}

/** Seconds of the fastest of several products, [rows, inputs] x [inputs, outputs]. */
async function fastestProduct(
  device: Device,
  dtype: DType,
  rows: number,
  inputs: number,
  outputs: number,
): Promise<number> {
  const input = device.rowLayout(inputs, dtype);
  const output = device.rowLayout(outputs, dtype);
  const bytes = (layout: typeof input) => rows * layout.pitch * BYTES_PER_ELEMENT[layout.dtype];
  const shape = { count: 1, inputs, outputs, dtype, input: input.dtype } as const;
  using projection = device.createProjection(
    { ...shape, output: "rows", gated: false, bias: false },
    "weights of the speed test",
  );
  using from = device.allocate(bytes(input), "input of the speed test");
  using to = device.allocate(bytes(output), "output of the speed test");
  using tokens = device.allocate(4, "row count of the speed test");
  using stream = device.createStream({ group: 0, priority: 0 });
  // Written, because memory that was never written may not be there to be read: the system
  // backs it with a single page of zeros. Noise, because a GPU spends less on zeros.
  await device.fillUniform(projection, 0, 1);
  const noise = Float32Array.from({ length: inputs }, (_, i) => Math.sin(i * i));
  const data = new Float32Array(rows * inputs);
  for (let row = 0; row < rows; row++) data.set(noise, row * inputs);
  device.writeRows(from, input, { dtype: "float32", shape: [rows, inputs], data });
  device.setComputeBudgets({ realisation: "shared", units: [device.properties.computeUnits] });
  device.write(tokens, Int32Array.of(rows));
  return await fastest(() => {
    stream.enqueue({
      kind: "project",
      projection,
      activation: { kind: "none" },
      input: from,
      output: to,
      rows: { from: "all", tokens, mostTokens: rows, matrix: 0 },
    });
    return device.synchronize();
  });
}

async function fastest(work: () => Promise<void>): Promise<number> {
  let best = Number.POSITIVE_INFINITY;
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    const started = performance.now();
    await work();
    best = Math.min(best, (performance.now() - started) / 1000);
  }
  return best;
}
