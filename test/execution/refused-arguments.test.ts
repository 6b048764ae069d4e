/** What callers without a type checker may pass to a device by mistake: a typed error, on every device, and nothing done or kept. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { NexusError } from "../../src/errors.ts";
import { openCpuDevice } from "../../src/execution/cpu/device.ts";
import type {
  AllocateOptions,
  ComputeBudgets,
  Device,
  DeviceBuffer,
  DeviceEvent,
  Projection,
  ProjectionSpec,
  RowLayout,
  Stream,
  StreamOptions,
} from "../../src/execution/device.ts";
import type { Operator } from "../../src/execution/operators.ts";
import type { DType, MatrixView, Tensor } from "../../src/tensor.ts";
import { withEmulated } from "./cuda/emulator/harness.ts";

const WIDTH = 64;
const SPEC: ProjectionSpec = {
  count: 1,
  inputs: WIDTH,
  outputs: WIDTH,
  dtype: "float32",
  input: "float32",
  output: "rows",
  gated: false,
  bias: true,
};

interface Things {
  readonly device: Device;
  readonly buffer: DeviceBuffer;
  readonly stream: Stream;
  readonly event: DeviceEvent;
  readonly projection: Projection;
}

/** What is never right, whatever is asked for. A list is, for options, an object without fields. */
const NEVER: readonly unknown[] = [null, "text", 10n, Symbol("s"), () => 0, Number.NaN];

/** An argument of a call: what calls with it, and what else than NEVER is wrong. */
interface Argument {
  readonly call: (things: Things, value: never) => unknown;
  /** Of NEVER, what it may be all the same. */
  readonly but?: readonly unknown[];
  readonly also: readonly unknown[];
}

function argument<T>(
  call: (things: Things, value: T) => unknown,
  also: readonly unknown[],
  but: readonly unknown[] = [],
): Argument {
  return { call: call as Argument["call"], also, but };
}

const layoutOf = (device: Device) => device.rowLayout(WIDTH, "float32");
const tensor: Tensor = { dtype: "float32", shape: [1, WIDTH], data: new Float32Array(WIDTH) };
const TEXT = ["text"];
const FUNCTION = [NEVER[4]];

const ARGUMENTS: Readonly<Record<string, Argument>> = {
  "allocate: byteLength": argument<number>(
    ({ device }, x) => device.allocate(x, "b"),
    [undefined, -1, 1.5],
  ),
  "allocate: label": argument<string>(
    ({ device }, x) => device.allocate(4, x),
    [undefined, 1, {}],
    TEXT,
  ),
  "allocate: options": argument<AllocateOptions>(
    ({ device }, x) => device.allocate(4, "b", x),
    [1, { mirror: true }, { mirrored: "yes" }],
  ),
  "write: target": argument<DeviceBuffer>(
    ({ device }, x) => device.write(x, new Uint8Array(4)),
    [undefined, {}, new Uint8Array(4)],
  ),
  "write: source": argument<ArrayBufferView>(
    ({ device, buffer }, x) => device.write(buffer, x),
    [
      undefined,
      {},
      [1, 2],
      new ArrayBuffer(4),
      { byteLength: 4, byteOffset: 0 },
      new Uint8Array(1000),
    ],
  ),
  "write: byteOffset": argument<number>(
    ({ device, buffer }, x) => device.write(buffer, new Uint8Array(4), x),
    [-1, 0.5, 253],
  ),
  "read: source": argument<DeviceBuffer>(
    ({ device }, x) => device.read(x, new Uint8Array(4)),
    [undefined, {}],
  ),
  "read: target": argument<ArrayBufferView>(
    ({ device, buffer }, x) => device.read(buffer, x),
    [undefined, {}, [1, 2], { byteLength: 4 }, new Uint8Array(1000)],
  ),
  "read: byteOffset": argument<number>(
    ({ device, buffer }, x) => device.read(buffer, new Uint8Array(4), x),
    [-1, 0.5, 253],
  ),
  "copy: target": argument<DeviceBuffer>(
    ({ device, buffer }, x) => device.copy(x, buffer, 4),
    [undefined, {}],
  ),
  "copy: source": argument<DeviceBuffer>(
    ({ device, buffer }, x) => device.copy(buffer, x, 4),
    [undefined, {}],
  ),
  "copy: byteLength": argument<number>(
    ({ device, buffer }, x) => device.copy(buffer, buffer, x),
    [undefined, -1, 0.5, 257],
  ),
  "rowLayout: width": argument<number>(
    ({ device }, x) => device.rowLayout(x, "float32"),
    [undefined, 0, 1.5, 2 ** 31],
  ),
  "rowLayout: weights": argument<DType>(
    ({ device }, x) => device.rowLayout(4, x),
    [undefined, "int32", "float64"],
  ),
  "writeRows: target": argument<DeviceBuffer>(
    ({ device }, x) => device.writeRows(x, layoutOf(device), tensor),
    [undefined, {}],
  ),
  "writeRows: layout": argument<RowLayout>(
    ({ device, buffer }, x) => device.writeRows(buffer, x, tensor),
    [undefined, {}, { dtype: "float32", width: WIDTH, pitch: WIDTH + 1 }, { dtype: "float32" }],
  ),
  "writeRows: source": argument<Tensor>(
    ({ device, buffer }, x) => device.writeRows(buffer, layoutOf(device), x),
    [
      undefined,
      {},
      { ...tensor, shape: undefined },
      { ...tensor, shape: [WIDTH, 1] },
      { ...tensor, data: new ArrayBuffer(256) },
      { ...tensor, data: new Uint16Array(2 * WIDTH) },
      { ...tensor, dtype: "int32" },
      { ...tensor, dtype: "float64" },
      { dtype: "int32", shape: [1, WIDTH], data: new Int32Array(WIDTH) },
      { ...tensor, data: new Float32Array(WIDTH - 1) },
    ],
  ),
  "copyRows: target": argument<DeviceBuffer>(
    ({ device, buffer }, x) => device.copyRows(x, layoutOf(device), buffer, "float32", 1),
    [undefined, {}],
  ),
  "copyRows: layout": argument<RowLayout>(
    ({ device, buffer }, x) => device.copyRows(buffer, x, buffer, "float32", 1),
    [undefined, {}, { dtype: "float32", width: WIDTH, pitch: 1 }],
  ),
  "copyRows: source": argument<DeviceBuffer>(
    ({ device, buffer }, x) => device.copyRows(buffer, layoutOf(device), x, "float32", 1),
    [undefined, {}],
  ),
  "copyRows: dtype": argument<DType>(
    ({ device, buffer }, x) => device.copyRows(buffer, layoutOf(device), buffer, x, 1),
    [undefined, "int32"],
  ),
  "copyRows: rows": argument<number>(
    ({ device, buffer }, x) => device.copyRows(buffer, layoutOf(device), buffer, "float32", x),
    [undefined, -1, 0.5, 2, []],
  ),
  "createProjection: spec": argument<ProjectionSpec>(
    ({ device }, x) => device.createProjection(x, "p"),
    [undefined, {}, { ...SPEC, count: 0 }, { ...SPEC, dtype: "int32" }],
  ),
  "createProjection: label": argument<string>(
    ({ device }, x) => device.createProjection(SPEC, x),
    [undefined, {}],
    TEXT,
  ),
  "fillUniform: projection": argument<Projection>(
    ({ device }, x) => device.fillUniform(x, 1, 1),
    [undefined, {}],
  ),
  "fillUniform: seed": argument<number>(
    ({ device, projection }, x) => device.fillUniform(projection, x, 1),
    [undefined, 0.5],
  ),
  "fillUniform: scale": argument<number>(
    ({ device, projection }, x) => device.fillUniform(projection, 1, x),
    [undefined, Number.POSITIVE_INFINITY],
  ),
  "createStream: options": argument<StreamOptions>(
    ({ device }, x) => device.createStream(x),
    [undefined, {}, { group: 8, priority: 0 }, { group: 0, priority: 0.5 }],
  ),
  "createEvent: label": argument<string>(
    ({ device }, x) => device.createEvent(x),
    [undefined, {}],
    TEXT,
  ),
  "setComputeBudgets: budgets": argument<ComputeBudgets>(
    ({ device }, x) => device.setComputeBudgets(x),
    [undefined, {}, { realisation: "shared" }, { realisation: "none", units: [] }],
  ),
  "capture: origin": argument<Stream>(
    ({ device }, x) => device.capture(x, () => {}),
    [undefined, {}],
  ),
  "capture: record": argument<() => void>(
    ({ device, stream }, x) => device.capture(stream, x),
    [undefined, {}, () => {}, async () => {}],
    FUNCTION,
  ),
  "enqueue: operator": argument<Operator>(
    ({ stream }, x) => stream.enqueue(x),
    [undefined, {}, { kind: "nothing" }],
  ),
  "record: event": argument<DeviceEvent>(({ stream }, x) => stream.record(x), [undefined, {}]),
  "wait: event": argument<DeviceEvent>(({ stream }, x) => stream.wait(x), [undefined, {}]),
  "a projection's write: matrix": argument<MatrixView>(
    ({ projection }, x) => projection.write(0, "value", x),
    [undefined, {}, { rows: WIDTH, columns: WIDTH }],
  ),
  "a projection's writeBias: bias": argument<Float32Array>(
    ({ projection }, x) => projection.writeBias(0, "value", x),
    [undefined, {}, new Float32Array(1)],
  ),
};

async function refusesAll(device: Device): Promise<void> {
  using buffer = device.allocate(WIDTH * 4, "buffer");
  using stream = device.createStream({ group: 0, priority: 0 });
  using event = device.createEvent("event");
  using projection = device.createProjection(SPEC, "projection");
  const things = { device, buffer, stream, event, projection };
  const written = Float32Array.from({ length: WIDTH }, (_, i) => i);
  device.write(buffer, written);
  // What a device keeps for reading is there from the first time on.
  await device.read(buffer, new Float32Array(WIDTH));
  const { usedBytes, allocations } = device.memory();
  for (const [name, { call, also, but = [] }] of Object.entries(ARGUMENTS)) {
    const values = [...NEVER.filter((each) => !but.includes(each)), ...also];
    for (const value of values) {
      await assert.rejects(
        async () => call(things, value as never),
        (error) => error instanceof NexusError && error.message.length < 600,
        `${name}: ${typeof value === "object" ? JSON.stringify(value) : String(value)}`,
      );
    }
  }
  await device.synchronize();
  const found = new Float32Array(WIDTH);
  await device.read(buffer, found);
  assert.deepEqual(found, written);
  const after = device.memory();
  assert.deepEqual([after.usedBytes, after.allocations], [usedBytes, allocations]);
}

describe("arguments that make no sense are refused with a typed error, and nothing is done", () => {
  it("by the CPU device", async () => {
    await using device = await openCpuDevice({ threads: 1 });
    await refusesAll(device);
  });

  it("by the CUDA device", () => withEmulated(refusesAll));
});
