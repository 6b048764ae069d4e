/** The GPU's energy source: what it counts, when it says that it cannot, and that it never goes back. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { setImmediate as nextTurn } from "node:timers/promises";
import { EnergyMonitor } from "../../../../src/control/energy-monitor.ts";
import {
  DeviceFailedError,
  DeviceUnavailableError,
  DisposedError,
} from "../../../../src/errors.ts";
import { type NvmlEnergy, openNvmlEnergy } from "../../../../src/execution/cuda/nvml/energy.ts";
import { NvmlError } from "../../../../src/execution/cuda/nvml/errors.ts";
import type { EnergySource } from "../../../../src/execution/device.ts";
import { CODE, FakeNvml, h200, smallInstance } from "./fake-nvml.ts";

function available({ source }: NvmlEnergy): Extract<EnergySource, { available: true }> {
  assert.ok(source.available, source.available ? "" : source.reason);
  return source;
}

function reasonOf({ source }: NvmlEnergy): string {
  assert.ok(!source.available);
  return source.reason;
}

describe("energy of a GPU", () => {
  it("counts joules of the whole board", async () => {
    const gpu = h200();
    const energy = await openNvmlEnergy(gpu.uuid, new FakeNvml(gpu));
    const source = available(energy);
    assert.equal(source.domain, "NVML total energy, GPU 0 (NVIDIA H200)");
    assert.equal(source.minimumWindowSeconds, 1);
    const before = await source.joules();
    gpu.millijoules += 12_500n;
    assert.ok(Math.abs((await source.joules()) - before - 12.5) < 1e-6);
    assert.equal((await energy.telemetry()).watts, 75.5);
  });

  it("gives the monitor joules for windows of a second, and none below", async () => {
    const gpu = h200();
    const source = available(await openNvmlEnergy(gpu.uuid, new FakeNvml(gpu)));
    let now = 0;
    const monitor = new EnergyMonitor(source, () => now);
    const window = monitor.begin();
    await source.joules();
    gpu.millijoules += 350_000n;
    now = 999;
    const tooShort = await window.end({ tokens: 700 });
    assert.match(tooShort.available ? "" : tooShort.reason, /shorter than the 1 s that NVML/);
    now = 1000;
    const reading = await window.end({ tokens: 700 });
    assert.ok(reading.available);
    assert.deepEqual([reading.joules, reading.watts, reading.tokensPerJoule], [350, 350, 2]);
  });

  it("makes one reading at a time, and a failed one does not spoil the next", async () => {
    const gpu = h200();
    const library = new FakeNvml(gpu);
    const source = available(await openNvmlEnergy(gpu.uuid, library));
    assert.equal(await source.watts?.(), 75.5);
    const readings = Promise.all(Array.from({ length: 5 }, () => source.joules()));
    gpu.millijoules += 1000n;
    const joules = await readings;
    assert.deepEqual(
      joules,
      [...joules].sort((a, b) => a - b),
    );
    library.failing.set("nvmlDeviceGetTotalEnergyConsumption", CODE.GPU_IS_LOST);
    await assert.rejects(source.joules(), (error: unknown) => {
      assert.ok(error instanceof NvmlError);
      assert.match(error.message, /nvmlDeviceGetTotalEnergyConsumption .*GPU_IS_LOST.*reset/);
      return true;
    });
    library.failing.clear();
    assert.ok((await source.joules()) >= (joules[0] as number));
  });

  it("fails where the counter goes back, once", async () => {
    const gpu = h200();
    const source = available(await openNvmlEnergy(gpu.uuid, new FakeNvml(gpu)));
    gpu.millijoules = 1000n;
    await assert.rejects(source.joules(), (error: unknown) => {
      assert.ok(error instanceof DeviceFailedError);
      assert.match(error.message, /went back from 5000000000\.123 J to 1 J: the GPU was reset/);
      return true;
    });
    assert.equal(await source.joules(), 1);
  });

  it("is not there without a counter, and power is not summed up instead", async () => {
    const gpu = h200();
    const library = new FakeNvml(gpu);
    library.failing.set("nvmlDeviceGetTotalEnergyConsumption", CODE.NOT_SUPPORTED);
    const energy = await openNvmlEnergy(gpu.uuid, library);
    assert.match(reasonOf(energy), /^NVIDIA H200 tells no joules: .*NOT_SUPPORTED/);
    const { watts, joules } = await energy.telemetry();
    assert.deepEqual([watts, joules], [75.5, null]);
    energy.close();
    await nextTurn();
    assert.equal(library.sessions, 0);
  });

  it("is not there for a MIG instance, whose share the counter does not know", async () => {
    const gpu = { ...h200(), mig: { current: true, pending: true, places: [smallInstance] } };
    const energy = await openNvmlEnergy(smallInstance.uuid, new FakeNvml(gpu));
    assert.match(reasonOf(energy), /covers the whole GPU and this is a MIG instance/);
    assert.equal((await energy.telemetry()).watts, 75.5);
  });

  it("is not there without NVML or without that GPU, and leaves nothing open", async () => {
    const noDriver = new FakeNvml();
    noDriver.failing.set("nvmlInit_v2", CODE.DRIVER_NOT_LOADED);
    const energy = await openNvmlEnergy("GPU-0", noDriver);
    assert.match(reasonOf(energy), /DRIVER_NOT_LOADED.*modprobe/);
    await assert.rejects(energy.telemetry(), DeviceUnavailableError);
    energy.close();
    energy[Symbol.dispose]();

    const other = new FakeNvml(h200());
    assert.match(reasonOf(await openNvmlEnergy("GPU-unknown", other)), /NOT_FOUND.*nvidia-smi -L/);
    await nextTurn();
    assert.equal(other.sessions, 0);
  });

  it("ends with close(), which can be called twice", async () => {
    const gpu = h200();
    const library = new FakeNvml(gpu);
    const energy = await openNvmlEnergy(gpu.uuid, library);
    const source = available(energy);
    const last = source.joules();
    energy.close();
    energy.close();
    // A reading that waits for its turn is not under way yet.
    await Promise.allSettled([last]);
    await assert.rejects(source.joules(), DisposedError);
    await assert.rejects(energy.telemetry(), DisposedError);
    await nextTurn();
    assert.equal(library.sessions, 0);
  });
});
