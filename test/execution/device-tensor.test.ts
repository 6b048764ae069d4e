/** Device tensors: which element types they keep on which device. */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import { DisposedError, InvalidArgumentError, ShapeError } from "../../src/errors.ts";
import { DeviceTensor } from "../../src/execution/device-tensor.ts";
import type { DType } from "../../src/tensor.ts";
import { openCpu } from "../support/device.ts";
import { type RecordingBuffer, RecordingDevice } from "../support/recording-device.ts";
import { tensorOf } from "../support/tensors.ts";

const cpu = await openCpu(1);
after(() => cpu.close());

const VALUES = Float32Array.of(1, -2.5, 0, 0.375, 1024, -0.0625);

test("16-bit tensors become float32 on a device that computes in float32", async () => {
  for (const dtype of ["float32", "bfloat16", "float16"] as const) {
    using tensor = DeviceTensor.fromHost(cpu, tensorOf(VALUES, [2, 3], dtype));
    assert.equal(tensor.dtype, "float32");
    assert.equal(tensor.buffer.byteLength, 24);
    assert.deepEqual(await tensor.toHost(), { dtype: "float32", shape: [2, 3], data: VALUES });
  }
});

test("16-bit tensors keep their bits on a device with rows of that type", async () => {
  const device = new RecordingDevice();
  for (const dtype of ["bfloat16", "float16"] as const) {
    const host = tensorOf(VALUES, [2, 3], dtype);
    using tensor = DeviceTensor.fromHost(device, host);
    assert.equal(tensor.dtype, dtype);
    assert.equal((tensor.buffer as RecordingBuffer).byteLength, 12);
    assert.deepEqual(await tensor.toHost(), { dtype, shape: [2, 3], data: host.data });
  }
  using integers = DeviceTensor.fromHost(device, { data: Int32Array.of(3, -4), shape: [2] });
  assert.equal(integers.dtype, "float32");
  assert.deepEqual((await integers.toHost()).data, Float32Array.of(3, -4));
});

test("a buffer is taken over as float32 unless told otherwise, if it is large enough", () => {
  const device = new RecordingDevice();
  const make = (bytes: number, dtype?: DType, on: RecordingDevice | typeof cpu = device) =>
    new DeviceTensor(on, on.allocate(bytes, "tensor"), [2, 3], dtype);
  assert.equal(make(24).dtype, "float32");
  assert.equal(make(12, "bfloat16").dtype, "bfloat16");
  assert.throws(() => make(23), ShapeError);
  assert.throws(() => make(11, "float16"), /float16.*needs 12 bytes; the buffer has 11/);
  for (const dtype of ["bfloat16", "float16", "int32"] as const) {
    assert.throws(
      () => make(24, dtype, cpu),
      (error) => error instanceof InvalidArgumentError && error.message.includes(dtype),
    );
  }
  assert.throws(() => make(24, "int32"), InvalidArgumentError);
});

test("an empty tensor has a buffer, and a freed one none", async () => {
  const empty = DeviceTensor.fromHost(cpu, tensorOf(new Float32Array(0), [0, 3], "bfloat16"));
  assert.deepEqual((await empty.toHost()).data, new Float32Array(0));
  empty[Symbol.dispose]();
  empty[Symbol.dispose]();
  await assert.rejects(empty.toHost(), DisposedError);
});
