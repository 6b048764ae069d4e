/** Which element types a layer enqueues: rows, gates, device tensors and logits, on a device that only writes down. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { InvalidArgumentError } from "../../src/errors.ts";
import { DeviceTensor } from "../../src/execution/device-tensor.ts";
import type { DType } from "../../src/tensor.ts";
import { gatedExperts } from "../support/layers.ts";
import { RecordingDevice } from "../support/recording-device.ts";
import { base, bfloat16, EXPERTS, HIDDEN, layerOn, only, TOP_K } from "./recorded-layer.ts";

test("rows are laid out for the experts' weights, gates put out float32", async () => {
  const { device, forward } = layerOn();
  await forward(8);
  const bytes = (label: string) =>
    device.buffers.find((buffer) => buffer.label.startsWith(label))?.byteLength;
  // Widths of 100 and 70 elements have a pitch of 128, of two bytes each.
  assert.equal(bytes("hidden states"), 8 * 128 * 2);
  assert.equal(bytes("expert intermediates"), 8 * TOP_K * 128 * 2);
  assert.equal(bytes("expert outputs"), 8 * TOP_K * 128 * 2);
  assert.equal(bytes("layer output"), 8 * HIDDEN * 4);
  const [gate, first, second] = device.projections;
  assert.deepEqual([gate?.input, gate?.output], ["bfloat16", "float32"]);
  assert.deepEqual([first?.input, first?.output], ["bfloat16", "rows"]);
  assert.deepEqual([second?.input, second?.output], ["bfloat16", "rows"]);
  assert.equal(only(device.operators, "bucket").rowType, "bfloat16");
  assert.equal(only(device.operators, "combine").rowType, "bfloat16");
});

test("a shared expert of another element type makes all rows float32", async () => {
  const shared = { experts: gatedExperts(HIDDEN, 30, { dtype: "float16" }), gate: false };
  const { device, forward } = layerOn({}, { ...bfloat16, shared });
  await forward(8);
  assert.ok(device.projections.every(({ input }) => input === "float32"));
  assert.deepEqual(
    device.projections.map(({ dtype }) => dtype),
    ["bfloat16", "bfloat16", "bfloat16", "float16", "float16"],
  );
  assert.equal(only(device.operators, "combine").rowType, "float32");
});

test("a device tensor comes back in the type it came in, by a graph of its own", async () => {
  const { device, layer } = layerOn();
  const tensor = (dtype: DType) =>
    new DeviceTensor(device, device.allocate(3 * HIDDEN * 4, "input"), [3, HIDDEN], dtype);
  for (const dtype of ["bfloat16", "float32"] as const) {
    const modes: string[] = [];
    for (let i = 0; i < 3; i++) {
      const { output, stats } = await layer.forward(tensor(dtype));
      modes.push(stats.mode);
      assert.ok(output instanceof DeviceTensor);
      assert.deepEqual([output.dtype, output.shape], [dtype, [3, HIDDEN]]);
      assert.equal(output.buffer.byteLength, 3 * HIDDEN * (dtype === "float32" ? 4 : 2));
    }
    assert.deepEqual(modes, ["eager", "captured", "replayed"]);
    assert.equal(only(device.operators, "decode").outputType, dtype);
    assert.equal(
      device.rowCopies.at(-1),
      `3 rows of ${dtype} to bfloat16 in hidden states of 4 tokens`,
    );
  }
  await assert.rejects(
    layer.forward(tensor("float16")),
    (error) =>
      error instanceof InvalidArgumentError && /float16.*computes in bfloat16/.test(error.message),
  );
  const inFloat32 = layerOn({}, base);
  const foreign = new DeviceTensor(
    inFloat32.device,
    inFloat32.device.allocate(HIDDEN * 2, "input"),
    [HIDDEN],
    "bfloat16",
  );
  await assert.rejects(inFloat32.layer.forward(foreign), /bfloat16.*computes in float32/);
  await assert.rejects(layer.forward(foreign), /another device/);
});

test("16-bit logits stay as they are where the device routes such, on the host and on the device", async () => {
  const { device, layer } = layerOn();
  const hidden = { data: new Float32Array(9 * HIDDEN), shape: [9, HIDDEN] };
  const bits = Uint16Array.from({ length: 9 * EXPERTS }, (_, i) => i);
  const logits = (dtype: DType) => ({ data: bits, shape: [9, EXPERTS], dtype });
  const routed = () => only(device.operators, "route").logitsType;
  const held = (bytes: number) =>
    device.buffers
      .findLast(({ label }) => label.startsWith("router logits"))
      ?.bytes.slice(0, bytes);
  const own = new Uint8Array(bits.buffer);

  await layer.forward(hidden, { logits: logits("bfloat16") });
  assert.equal(routed(), "bfloat16");
  assert.deepEqual(held(own.length), own);
  await layer.forward(hidden, { logits: logits("float16") });
  assert.equal(routed(), "float32", "float16 is none of this device's");
  assert.deepEqual(held(4), new Uint8Array(4));

  using there = DeviceTensor.fromHost(device, logits("bfloat16"));
  const { stats } = await layer.forward(hidden, { logits: there });
  assert.equal(stats.mode, "captured", "the graph of bfloat16 logits");
  assert.equal(routed(), "bfloat16");
  assert.deepEqual(held(own.length), own);

  using foreign = DeviceTensor.fromHost(new RecordingDevice(), logits("bfloat16"));
  await assert.rejects(layer.forward(hidden, { logits: foreign }), /logits are on another device/);
  const { layer: other, device: narrow } = layerOn({ logitsDTypes: ["float32"] });
  using odd = DeviceTensor.fromHost(narrow, logits("bfloat16"));
  await assert.rejects(
    other.forward(hidden, { logits: odd }),
    (error) =>
      error instanceof InvalidArgumentError && /bfloat16, which .* Use float32/.test(error.message),
  );
});
