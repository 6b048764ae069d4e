/**
 * A CUDA device on the fake driver, with one operator instead of the real ones: a kernel
 * whose result shows what it was given, out = a / 2 + b / 2 + 1 for each element. It can copy
 * something along with that, as other kernels tidy up. The launches, their arguments and
 * everything around them are the device's own.
 */

import assert from "node:assert/strict";
import { DisposedError, InvalidArgumentError } from "../../../src/errors.ts";
import type { KernelSet } from "../../../src/execution/cuda/bundle/kernel-set.ts";
import type { KernelEntry } from "../../../src/execution/cuda/bundle/manifest.ts";
import { CudaCore } from "../../../src/execution/cuda/core.ts";
import { CudaDevice } from "../../../src/execution/cuda/device.ts";
import { Context } from "../../../src/execution/cuda/driver/context.ts";
import { GpuBuffer } from "../../../src/execution/cuda/memory.ts";
import type { OperatorContext } from "../../../src/execution/cuda/operators/context.ts";
import type { OwnedOperator } from "../../../src/execution/cuda/operators/encoder.ts";
import { kernelWork } from "../../../src/execution/cuda/operators/kernel-work.ts";
import { cudaProperties } from "../../../src/execution/cuda/properties.ts";
import type { Work } from "../../../src/execution/cuda/work.ts";
import type { DeviceBuffer, Stream } from "../../../src/execution/device.ts";
import type { Operator } from "../../../src/execution/operators.ts";
import { FakeDriver, type FakeLaunch } from "./fake-driver.ts";

/** Elements of every operand. */
export const WIDTH = 4;
export const OPERAND_BYTES = WIDTH * 4;

/** Bytes that every operator says to have weights of. */
export const WEIGHT_BYTES = 2 ** 20;

/** Blocks of the budgeted kernel for each multiprocessor. */
export const BLOCKS = 2;

export interface Average {
  readonly a: DeviceBuffer;
  readonly b: DeviceBuffer;
  readonly output: DeviceBuffer;
  /** Default: a persistent kernel that is charged to its group. */
  readonly budgeted?: boolean;
  /** Copied to, beside what follows. */
  readonly beside?: DeviceBuffer;
  /** Whether that is tidying up, which other kernels can do, and not a copy of the driver's. */
  readonly tidying?: boolean;
  /** Whether its kernel does tidying along with its own work. */
  readonly tidiesUp?: boolean;
  /** Whether it can do that of its own. */
  readonly tidiesOwn?: boolean;
  readonly afterBeside?: boolean;
  /** A row that routing finds without finite weights. */
  readonly faultyRow?: number;
}

const NAMES = ["a", "b", "output", "tidy_from", "tidy_to"] as const;

const NOTHING_TO_TIDY = { tidy_from: null, tidy_to: null };

/** The parts of a manifest's entry that launches are written from. */
const ENTRY = {
  name: "average",
  arch: "sm_90a",
  entry: "average",
  num_warps: 4,
  shared: 0,
  args: NAMES.map((name) => ({ name, type: "*fp32", divisible_by: 16 })),
  ...{
    tensordesc_meta: [],
    launch_pdl: false,
    grid: { rule: "cover", blocks_per_multiprocessor: 1 },
    selects: {},
  },
} as unknown as KernelEntry;

const KERNELS = {
  architecture: "sm_90a",
  manifest: { kernels: [ENTRY] },
  all: () => [],
  tryOut: () => {},
  close: () => {},
} as unknown as KernelSet;

export interface FakeDevice {
  readonly driver: FakeDriver;
  readonly core: CudaCore;
  readonly device: CudaDevice;
}

export function openFake(driver = new FakeDriver()): FakeDevice {
  const fn = 77n;
  driver.onKernel = (launch) => average(driver, launch);
  const core = new CudaCore({
    driver,
    facts: driver.facts,
    kernels: KERNELS,
    float32: "ieee",
    context: new Context(driver, 0),
    encode: (operator, context) => encode(operator as unknown as Average, context, fn),
  });
  const none = { available: false, reason: "There is none." } as const;
  const mig = { availability: none, instances: [] };
  const properties = cudaProperties(driver.facts, KERNELS, driver.noPartitions, mig);
  const energy = {
    source: none,
    close: () => {},
  } as const;
  return { driver, core, device: new CudaDevice(core, properties, energy) };
}

/** Runs `body` with a device of its own and sees to it that nothing is left of it. */
export async function withFake(
  body: (fake: FakeDevice) => Promise<void>,
  driver = new FakeDriver(),
): Promise<void> {
  const fake = openFake(driver);
  try {
    await body(fake);
  } finally {
    driver.stalled = false;
    await fake.device.close();
  }
  assert.deepEqual(driver.live, {}, "left behind");
}

export function enqueue(stream: Stream, operator: Average): void {
  stream.enqueue(operator as unknown as Operator);
}

export function operand(device: CudaDevice, value?: number, label = "operand"): DeviceBuffer {
  const buffer = device.allocate(OPERAND_BYTES, label);
  if (value !== undefined) device.write(buffer, new Float32Array(WIDTH).fill(value));
  return buffer;
}

export async function readValue(device: CudaDevice, buffer: DeviceBuffer): Promise<number> {
  const values = new Float32Array(WIDTH);
  await device.read(buffer, values);
  assert.ok(
    values.every((value) => Object.is(value, values[0])),
    `elements differ: ${values}`,
  );
  return values[0] as number;
}

function encode(
  { a, b, output, budgeted = true, beside, afterBeside = false, faultyRow, ...more }: Average,
  context: OperatorContext,
  fn: bigint,
): OwnedOperator {
  const buffers = [a, b, output, ...(beside === undefined ? [] : [beside])];
  for (const buffer of buffers) {
    if (!(buffer instanceof GpuBuffer) || buffer.owner !== context.owner) {
      throw new InvalidArgumentError("An operand is not a buffer of this device.");
    }
    if (buffer.closed) throw new DisposedError(`Buffer "${buffer.label}"`);
  }
  const [from, and, to, copy] = buffers as [GpuBuffer, GpuBuffer, GpuBuffer, GpuBuffer?];
  const kernel = kernelWork(
    context,
    { entry: ENTRY, fn },
    { a: from.address, b: and.address, output: to.address, ...NOTHING_TO_TIDY },
    {
      blocks: (multiprocessors) => (budgeted ? multiprocessors * BLOCKS : 5),
      persistent: budgeted,
      y: 3,
      pieces: 15,
    },
    {
      budgeted,
      tidiesUp: more.tidiesUp ?? false,
      tidiesOwn: more.tidiesOwn ?? false,
      weights: { address: from.address, bytes: WEIGHT_BYTES },
    },
  );
  const launches = [kernel.launch];
  const fault = { kind: "fill", address: context.fault.device, value: faultyRow ?? 0, words: 1 };
  const housekeeping: Work[] = [];
  if (copy !== undefined && more.tidying) {
    const tidying = { tidy_from: to.address, tidy_to: copy.address };
    const grid = { blocks: () => 1, persistent: false, y: 1, pieces: 1 };
    const alone = { a: null, b: null, output: null, ...tidying };
    const tidy = kernelWork(context, { entry: ENTRY, fn }, alone, grid, { tidying });
    launches.push(tidy.launch);
    housekeeping.push(tidy);
  } else if (copy !== undefined) {
    housekeeping.push({
      kind: "copy",
      target: copy.address,
      source: to.address,
      bytes: OPERAND_BYTES,
    });
  }
  if (to.mirror !== undefined) {
    housekeeping.push({
      kind: "mirror",
      target: to.mirror.address,
      source: to.address,
      bytes: OPERAND_BYTES,
    });
  }
  if (faultyRow !== undefined) {
    housekeeping.push(
      { kind: "mirror", target: context.fault.host, source: context.fault.device, bytes: 4 },
      { kind: "fill", address: context.fault.device, value: 0x7fffffff, words: 1 },
    );
  }
  return {
    work: faultyRow === undefined ? [kernel] : [kernel, fault as Work],
    beside: housekeeping,
    afterBeside,
    resources: buffers as GpuBuffer[],
    [Symbol.dispose]: () => {
      for (const launch of launches) launch[Symbol.dispose]();
    },
  };
}

function average(driver: FakeDriver, launch: FakeLaunch): void {
  const [a, b, output, from, to] = NAMES.map((_, index) => {
    const address = launch.parameter(index, 8).getBigUint64(0, true);
    if (address === 0n) return undefined;
    const { buffer, byteOffset } = driver.bytesAt(address, OPERAND_BYTES);
    return new Float32Array(buffer, byteOffset, WIDTH);
  });
  const own = from !== undefined && from.byteOffset === output?.byteOffset;
  if (from !== undefined && !own) to?.set(from);
  if (a === undefined || b === undefined) return;
  for (let i = 0; i < WIDTH; i++) {
    (output as Float32Array)[i] = (a[i] as number) / 2 + (b[i] as number) / 2 + 1;
  }
  if (own) to?.set(from);
}
