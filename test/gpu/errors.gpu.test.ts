/**
 * What goes wrong on a GPU, and that it goes wrong with a clear error and leaves the
 * device usable: no room, bad numbers, closed objects, a GPU that is not visible, a
 * process killed in the middle. Damaged kernels: damaged-bundle.gpu.test.ts.
 */

import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { Experts } from "../../src/data/experts.ts";
import { Router } from "../../src/data/router.ts";
import {
  DisposedError,
  InvalidArgumentError,
  InvalidLogitsError,
  NexusError,
  OutOfDeviceMemoryError,
} from "../../src/errors.ts";
import { DeviceTensor } from "../../src/execution/device-tensor.ts";
import { MoELayer } from "../../src/layer/moe-layer.ts";
import { referenceLayer, relativeError } from "../../src/reference/index.ts";
import { matrixView } from "../../src/tensor.ts";
import { batch, gatedExperts, plainSpec, randomLayer, WEIGHT_DTYPES } from "../support/layers.ts";
import { normal, randomFor } from "../support/seed.ts";
import { gpuTest, openGpu } from "./gpu.ts";
import { clearHidden, ERROR_BOUND } from "./layers.ts";
import { CHILD, runChild } from "./run-child.ts";

gpuTest(
  "an allocation beyond the card's memory names the sizes, and the device goes on",
  async (device) => {
    const { memoryBytes } = device.properties;
    assert.throws(
      () => device.allocate(4 * memoryBytes, "far too much"),
      (error) => {
        assert.ok(error instanceof OutOfDeviceMemoryError, String(error));
        assert.equal(error.requestedBytes, 4 * memoryBytes);
        assert.ok(error.availableBytes > 0 && error.availableBytes <= memoryBytes);
        assert.match(error.message, /far too much/);
        return true;
      },
    );
    const held = device.allocate(Math.floor(device.memory().limitBytes * 0.6), "more than half");
    try {
      assert.throws(
        () => device.allocate(Math.floor(memoryBytes * 0.6), "more than half again"),
        OutOfDeviceMemoryError,
      );
    } finally {
      held[Symbol.dispose]();
    }
    const spec = { ...plainSpec(8192, 32_768, 128, 2), experts: gatedExperts(8192, 32_768) };
    const { tensors } = randomLayer(randomFor("gpu too large"), plainSpec(8, 4, 2, 1));
    const source = { gate: async () => assert.fail("unused"), expert: async () => [] };
    await using tooLarge = new MoELayer(spec, { ...source, gate: gateOf(128, 8192) }, { device });
    await assert.rejects(tooLarge.ready(), OutOfDeviceMemoryError);
    await using layer = new MoELayer(plainSpec(8, 4, 2, 1), tensors, { device });
    await layer.forward({ data: new Float32Array(8), shape: [1, 8] });
  },
);

function gateOf(rows: number, columns: number) {
  const data = new Float32Array(rows * columns);
  return async () => matrixView({ dtype: "float32", shape: [rows, columns], data });
}

for (const dtype of WEIGHT_DTYPES) {
  gpuTest(
    `NaN hidden states are refused by row, and the layer goes on, ${dtype}`,
    async (device) => {
      const random = randomFor(`gpu nan ${dtype}`);
      const spec = { ...plainSpec(40, 24, 6, 2), experts: gatedExperts(40, 24, { dtype }) };
      const parts = randomLayer(random, spec);
      await using layer = new MoELayer(spec, parts.tensors, { device });
      for (const tokens of [1, 4, 70]) {
        const good = await clearHidden(random, parts, tokens);
        const expected = await referenceLayer(spec, parts.source, good);
        // Eager, captured and replayed, each refused and done.
        for (let step = 0; step < 4; step++) {
          const row = random.integer(tokens);
          const bad = good.slice();
          for (let r = row; r < tokens; r += 9) bad[r * 40 + 3] = Number.NaN;
          await assert.rejects(layer.forward(batch(bad, 40)), (error) => {
            assert.ok(error instanceof InvalidLogitsError, String(error));
            assert.equal(error.row, row);
            return true;
          });
          const { output } = await layer.forward(batch(good, 40));
          const error = relativeError(output.data, expected.output);
          assert.ok(error < 1.5 * ERROR_BOUND[dtype], `off by ${error} after a refusal`);
        }
      }
    },
  );
}

gpuTest("logits without finite weights are refused by row", async (device) => {
  using router = new Router({ topK: 2, device });
  const hidden = { data: new Float32Array(50), shape: [50, 1] };
  for (const value of [Number.NaN, Number.POSITIVE_INFINITY]) {
    const logits = normal(randomFor("gpu bad logits"), 50 * 8);
    logits[31 * 8 + 5] = value;
    logits[44 * 8] = value;
    const refused = router.route(hidden, { data: logits, shape: [50, 8] });
    await assert.rejects(
      refused,
      (error) => error instanceof InvalidLogitsError && error.row === 31,
    );
  }
  const logits = normal(randomFor("gpu good logits"), 50 * 8);
  assert.equal((await router.route(hidden, { data: logits, shape: [50, 8] })).tokens, 50);
});

gpuTest("closed objects say so", async (device) => {
  const random = randomFor("gpu closed");
  const spec = plainSpec(16, 8, 4, 2);
  const { tensors } = randomLayer(random, spec);
  const hidden = batch(normal(random, 32), 16);
  const layer = new MoELayer(spec, tensors, { device });
  await layer.forward(hidden);
  await layer.close();
  await layer.close();
  await assert.rejects(layer.forward(hidden), DisposedError);

  const buffer = device.allocate(64, "short-lived");
  buffer[Symbol.dispose]();
  buffer[Symbol.dispose]();
  assert.throws(() => device.write(buffer, new Float32Array(4)), DisposedError);
  await assert.rejects(device.read(buffer, new Float32Array(4)), DisposedError);

  const input = DeviceTensor.fromHost(device, hidden);
  input[Symbol.dispose]();
  await using other = new MoELayer(spec, tensors, { device });
  await assert.rejects(other.forward(input), DisposedError);

  const second = await openGpu();
  const lost = new MoELayer(spec, tensors, { device: second });
  await lost.forward(hidden);
  await second.close();
  await second.close();
  assert.equal(second.closed, true);
  assert.throws(() => second.allocate(64, "too late"), DisposedError);
  await assert.rejects(lost.forward(hidden), NexusError);
  await lost.close();
  await other.forward(hidden);
});

gpuTest("tensors and layers of another opening of the device are refused", async (device) => {
  const random = randomFor("gpu foreign");
  const { spec, tensors } = randomLayer(random, plainSpec(16, 8, 4, 2));
  await using second = await openGpu();
  await using layer = new MoELayer(spec, tensors, { device });
  using foreign = DeviceTensor.fromHost(second, batch(normal(random, 32), 16));
  await assert.rejects(layer.forward(foreign), InvalidArgumentError);
  await layer.forward(batch(normal(random, 32), 16));
});

gpuTest("budgets that do not fit are refused before anything is run", async (device) => {
  const { computeUnits, realisations } = device.properties;
  const refuse = (units: readonly number[], realisation: "shared" | "partitioned" | "mig") =>
    assert.throws(
      () => device.setComputeBudgets({ realisation, units }),
      (error) => error instanceof NexusError,
      `${realisation} ${units.join()}`,
    );
  refuse([computeUnits + 8], "shared");
  refuse([computeUnits, 8], "shared");
  refuse([-8], "shared");
  refuse([Number.NaN], "shared");
  refuse(new Array(9).fill(8), "shared");
  if (realisations.partitioned.available) refuse([computeUnits, computeUnits], "partitioned");
  if (!realisations.mig.available) refuse([8], "mig");
  device.setComputeBudgets({ realisation: "shared", units: [computeUnits] });
});

gpuTest("experts of another element type than the device holds are refused", async (device) => {
  const spec = { ...gatedExperts(8, 4), dtype: "int32" as const };
  const none = Experts.load(device, spec, 1, async () => []);
  await assert.rejects(none, InvalidArgumentError);
});

gpuTest("a GPU hidden by CUDA_VISIBLE_DEVICES is an ordinary absence", async () => {
  const said = runChild("open", { env: { CUDA_VISIBLE_DEVICES: "" } });
  assert.equal(said.code, "ERR_DEVICE_UNAVAILABLE", JSON.stringify(said));
  assert.match(said.message as string, /CUDA_VISIBLE_DEVICES/);
});

/** Resolves once the child says that it replays. */
async function replaying(child: ChildProcess): Promise<void> {
  let said = "";
  for await (const text of child.stdout ?? []) {
    said += String(text);
    if (said.includes("replaying")) return;
  }
  throw new Error(`the child ended: ${said}`);
}

gpuTest("a process killed in the middle of replays leaves the device fine", async (device) => {
  const random = randomFor("gpu killed");
  const parts = randomLayer(random, plainSpec(64, 48, 6, 2));
  await using layer = new MoELayer(parts.spec, parts.tensors, { device });
  const hidden = await clearHidden(random, parts, 40);
  const before = (await layer.forward(batch(hidden, 64))).output.data;
  for (let i = 0; i < 2; i++) {
    const child = spawn(process.execPath, [CHILD, "replay"], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    const ended = once(child, "exit");
    await replaying(child);
    await sleep(200);
    child.kill("SIGKILL");
    const [, signal] = await ended;
    assert.equal(signal, "SIGKILL");
  }
  assert.equal(runChild("open").finite, true);
  assert.deepEqual((await layer.forward(batch(hidden, 64))).output.data, before);
});
