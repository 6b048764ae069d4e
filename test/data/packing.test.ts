/** Which experts' weights can be packed, and what is said of the others before anything is done on a device. */

import assert from "node:assert/strict";
import { after, describe, it } from "node:test";
import { Experts } from "../../src/data/experts.ts";
import { checkPackable, type PackedExperts } from "../../src/data/packing.ts";
import { DeviceUnavailableError, InvalidArgumentError } from "../../src/errors.ts";
import type { ExpertTensors } from "../../src/index.ts";
import { openCpu } from "../support/device.ts";
import { gatedExperts, layOut, PLAIN_LAYOUT, plainSpec, randomExperts } from "../support/layers.ts";
import { RecordingDevice } from "../support/recording-device.ts";
import { randomFor } from "../support/seed.ts";

const cpu = await openCpu(1);
after(() => cpu.close());

const experts = gatedExperts(8, 6, { dtype: "bfloat16" });
const good: PackedExperts = { experts, rowWeights: "bfloat16" };

describe("weights to be packed", () => {
  it("may be those of gated bfloat16 experts, wherever that is not known to be impossible", () => {
    checkPackable(good);
    checkPackable(good, new RecordingDevice().properties);
    checkPackable({ ...good, aggregation: plainSpec(8, 6, 2, 1).aggregation });
  });

  it("are refused with what is against it, and what to do", () => {
    const { aggregation } = plainSpec(8, 6, 2, 1);
    const refused: readonly (readonly [Partial<PackedExperts>, RegExp])[] = [
      [{ experts: { ...experts, dtype: "float16" } }, /experts\.dtype is "float16", and only bf/],
      [{ rowWeights: "float32" }, /the shared expert makes rows float32/],
      [{ experts: { ...experts, form: "mlp" } }, /experts\.form is "mlp", and only gated/],
      [{ experts: { ...experts, form: "mlp", depth: 3 } }, /experts\.form is "mlp"/],
      [
        { aggregation: { ...aggregation, weightsApplyTo: "input" } },
        /aggregation\.weightsApplyTo is "input"/,
      ],
    ];
    for (const [change, message] of refused) {
      assert.throws(
        () => checkPackable({ ...good, ...change }),
        (error) => {
          assert.ok(error instanceof InvalidArgumentError);
          assert.match(error.message, /^packWeights is set, but .* Leave packWeights out, or/);
          assert.match(error.message, message);
          return true;
        },
      );
    }
  });

  it("need a device that packs them, for their activation", () => {
    const relu = { ...good, experts: { ...experts, activation: { kind: "relu" } } as const };
    checkPackable(relu);
    assert.throws(() => checkPackable(relu, new RecordingDevice().properties), {
      name: "InvalidArgumentError",
      message: /experts\.activation\.kind is "relu", and weights can be packed for silu\. Leave/,
    });
    assert.throws(() => checkPackable(good, cpu.properties), {
      name: "DeviceUnavailableError",
      message: /^packWeights is set\. The CPU device has no kernels for packed weights\. Leave/,
    });
  });
});

describe("experts of tensors", () => {
  const tensors: ExpertTensors = layOut(
    experts,
    randomExperts(randomFor("packed experts"), experts, 2),
    PLAIN_LAYOUT,
  );

  it("have packed projections if that is asked for, and the device is told", async () => {
    for (const packWeights of [true, false]) {
      const device = new RecordingDevice();
      using made = await Experts.fromTensors(experts, 2, tensors, { device, packWeights });
      assert.equal(made.packed, packWeights);
      assert.deepEqual(
        device.projections.map(({ packed = false }) => packed),
        [packWeights, packWeights],
      );
    }
  });

  it("are refused before anything is allocated", async () => {
    const before = cpu.memory();
    const on = (packWeights: boolean) => ({ device: cpu, packWeights });
    await assert.rejects(
      Experts.fromTensors(experts, 2, tensors, on(true)),
      DeviceUnavailableError,
    );
    await assert.rejects(Experts.fromTensors(experts, 2, tensors, on("yes" as never)), {
      name: "InvalidArgumentError",
      message: /options\.packWeights is "yes"/,
    });
    const device = new RecordingDevice();
    const mlp = { ...experts, form: "mlp" } as const;
    await assert.rejects(
      Experts.load(device, mlp, 2, async () => [], { packWeights: true }),
      /experts\.form is "mlp"/,
    );
    assert.deepEqual(device.projections, []);
    assert.deepEqual(cpu.memory(), before);
  });
});

it("a projection that is packed is refused by a device that packs none, and for other types by all", () => {
  const types = { dtype: "bfloat16", input: "float32", output: "rows" } as const;
  const spec = { count: 1, inputs: 4, outputs: 4, gated: false, bias: false, ...types };
  assert.throws(() => cpu.createProjection({ ...spec, packed: true }, "weights"), {
    name: "InvalidArgumentError",
    message: /packed is true\. The CPU device has no kernels for packed weights\. Leave packed out/,
  });
  assert.throws(() => cpu.createProjection({ ...spec, packed: 1 as never }, "weights"), {
    name: "InvalidArgumentError",
    message: /packed is 1\. Use true, false or "beside"/,
  });
  cpu.createProjection({ ...spec, packed: false }, "weights")[Symbol.dispose]();
});
