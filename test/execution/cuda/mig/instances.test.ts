/** What is told of MIG: modes, instances, and every reason for there being none. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { SliceManager } from "../../../../src/control/slices/manager.ts";
import {
  listInstances,
  migOfDevice,
  surveyMig,
} from "../../../../src/execution/cuda/mig/instances.ts";
import { NvmlError } from "../../../../src/execution/cuda/nvml/errors.ts";
import { NvmlSession } from "../../../../src/execution/cuda/nvml/session.ts";
import { cudaProperties } from "../../../../src/execution/cuda/properties.ts";
import { FAKE_FACTS } from "../fake-driver.ts";
import { CODE, FakeNvml, h200, largeInstance, smallInstance } from "../nvml/fake-nvml.ts";

/** A bundle without any. */
const NO_KERNELS = {
  architecture: "sm_90a",
  manifest: { kernels: [], activations: {} },
  all: () => [],
} as unknown as Parameters<typeof cudaProperties>[1];

async function survey(library: FakeNvml) {
  const session = await NvmlSession.open(library);
  const [gpu] = await session.gpus();
  assert.ok(gpu);
  return surveyMig(gpu);
}

describe("MIG", () => {
  it("lists instances with what they are made of", async () => {
    const mig = {
      current: true,
      pending: true,
      places: [null, smallInstance, null, largeInstance],
    };
    const found = await survey(new FakeNvml({ ...h200(), mig }));
    assert.deepEqual(found, {
      mode: "on",
      availability: { available: true },
      instances: [
        {
          uuid: smallInstance.uuid,
          gpu: 0,
          gpuInstance: 7,
          computeInstance: 0,
          profile: "1g.18gb",
          computeUnits: 16,
          memoryBytes: 16 * 2 ** 30,
        },
        {
          uuid: largeInstance.uuid,
          gpu: 0,
          gpuInstance: 2,
          computeInstance: 1,
          profile: "1c.3g.71gb",
          computeUnits: 60,
          memoryBytes: 16 * 2 ** 30,
        },
      ],
    });
  });

  it("says how to turn it on, but not where it will be on after a reset", async () => {
    const off = await survey(new FakeNvml(h200()));
    assert.deepEqual([off.mode, off.instances], ["off", []]);
    assert.deepEqual(off.availability, {
      available: false,
      reason:
        "MIG is off on GPU 0 (NVIDIA H200); an administrator turns it on with nvidia-smi -i 0 -mig 1.",
    });
    const mig = { current: false, pending: true, places: [] };
    const pending = await survey(new FakeNvml({ ...h200(), mig }));
    assert.equal(pending.pendingMode, "on");
    assert.match(JSON.stringify(pending.availability), /when the GPU is reset next/);
  });

  it("tells a GPU without MIG from one without instances", async () => {
    const { mig: _, ...plain } = h200();
    const none = await survey(new FakeNvml(plain));
    assert.equal(none.mode, "none");
    assert.match(JSON.stringify(none.availability), /GPU 0 \(NVIDIA H200\) has no MIG/);
    const mig = { current: true, pending: true, places: [null] };
    const empty = await survey(new FakeNvml({ ...h200(), mig }));
    assert.equal(empty.mode, "on");
    assert.match(JSON.stringify(empty.availability), /no instance .* nvidia-smi mig -i 0 -cgi/);
  });

  it("leaves out instances that belong to others, and copes with a driver that tells no sizes", async () => {
    const mig = { current: true, pending: true, places: [{ ...smallInstance, name: "odd" }] };
    const library = new FakeNvml({ ...h200(), mig });
    library.failing.set("nvmlDeviceGetAttributes_v2", CODE.FUNCTION_NOT_FOUND);
    const [instance] = (await survey(library)).instances;
    assert.deepEqual(
      [instance?.profile, instance?.computeUnits, instance?.memoryBytes],
      ["odd", null, null],
    );
    library.failing.set("nvmlDeviceGetMigDeviceHandleByIndex", CODE.NO_PERMISSION);
    assert.deepEqual((await survey(library)).instances, []);
    library.failing.set("nvmlDeviceGetMigDeviceHandleByIndex", CODE.GPU_IS_LOST);
    await assert.rejects(survey(library), NvmlError);
  });

  it("is available to a device that is a GPU, and to one that is an instance of it", async () => {
    const mig = { current: true, pending: true, places: [smallInstance] };
    const gpu = { ...h200(), mig };
    for (const uuid of [gpu.uuid, smallInstance.uuid]) {
      const library = new FakeNvml(gpu);
      const { availability, instances } = await migOfDevice(uuid, library);
      assert.deepEqual(availability, { available: true });
      assert.deepEqual(
        instances.map((each) => each.uuid),
        [smallInstance.uuid],
      );
      assert.equal(library.sessions, 0);
    }
    const broken = new FakeNvml();
    broken.failing.set("nvmlInit_v2", CODE.DRIVER_NOT_LOADED);
    const { availability, instances } = await migOfDevice("GPU-0", broken);
    assert.match(JSON.stringify(availability), /listed by NVML\. nvmlInit_v2 failed/);
    assert.deepEqual(instances, []);
  });

  it("gathers the instances of all GPUs, and the reasons of those without", async () => {
    const mig = { current: true, pending: true, places: [smallInstance] };
    const library = new FakeNvml(h200(0), { ...h200(1), mig });
    const { instances, reasons } = await listInstances(library);
    assert.deepEqual(
      instances.map(({ uuid, gpu }) => [uuid, gpu]),
      [[smallInstance.uuid, 1]],
    );
    assert.equal(reasons.length, 1);
    assert.match(reasons[0] ?? "", /MIG is off on GPU 0/);
    assert.equal(library.sessions, 0);
  });

  it("goes from NVML through the device's properties to slice F of a plan", async () => {
    const mig = { current: true, pending: true, places: [smallInstance, largeInstance] };
    const gpu = { ...h200(), mig };
    const found = await migOfDevice(gpu.uuid, new FakeNvml(gpu));
    const properties = cudaProperties(FAKE_FACTS, NO_KERNELS, null, found);
    const { F } = new SliceManager({ device: properties }).allocate({
      counts: Int32Array.of(3, 1),
    }).slices;
    assert.deepEqual(
      F.migInstances?.map(({ uuid, computeUnits }) => [uuid, computeUnits]),
      [
        [smallInstance.uuid, 16],
        [largeInstance.uuid, 60],
      ],
    );
    assert.match(
      F.reason,
      /openMigPool\(\).* 1c\.3g\.71gb MIG-large \(60 compute units, 16384 MiB/,
    );
    assert.throws(
      () => new SliceManager({ device: properties, realisation: "mig" }),
      /^InvalidArgumentError: realisation is "mig".*openMigPool\(\)/,
    );
  });
});
