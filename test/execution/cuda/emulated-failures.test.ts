/** Calls of the driver that fail in the middle of a step: the caller gets that error, and nothing is left behind. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { DeviceTensor } from "../../../src/execution/device-tensor.ts";
import { MoELayer } from "../../../src/layer/moe-layer.ts";
import { batch, plainSpec, randomLayer } from "../../support/layers.ts";
import { normal, randomFor } from "../../support/seed.ts";
import { withEmulated } from "./emulator/harness.ts";

const HIDDEN = 8;
const TOKENS = 20;

/** CUDA_ERROR_LAUNCH_FAILED, after which a context is lost. */
const LAUNCH_FAILED = 719;

describe("a call of the driver that fails within a step", () => {
  const random = randomFor("emulated failures");
  const { spec, tensors } = randomLayer(random, plainSpec(HIDDEN, 4, 4, 2));
  const hidden = batch(normal(random, TOKENS * HIDDEN), HIDDEN);

  const cases = [
    ["launchKernel", 0, 1],
    ["launchKernel", 1, 1],
    ["launchKernel", 2, 1],
    ["launchGraph", 0, 0],
  ] as const;
  for (const [call, nth, warmup] of cases) {
    it(`${call} ${nth}, on a device's tensor`, () =>
      withEmulated(async (device, driver) => {
        const layer = new MoELayer(spec, tensors, { device, graphs: { warmup } });
        await layer.ready();
        const input = DeviceTensor.fromHost(device, hidden);
        driver.fail(call, { skip: nth, result: LAUNCH_FAILED });
        // What nobody waits for would end the process, and this test.
        await assert.rejects(layer.forward(input), {
          code: "ERR_DEVICE_FAILED",
          message: new RegExp(`^${call} failed with FAKE_ERROR_719 \\(719\\)`),
        });
        await layer.close();
        // A device that has failed has no memory to give back before it is closed.
        await device.close();
      }));
  }

  it("every copy to the device in turn: no block is left", () =>
    withEmulated(async (device, driver) => {
      const options = { device, streams: 2 };
      const idle = new MoELayer(spec, tensors, options);
      await idle.forward(hidden);
      await idle.close();
      const { allocations } = device.memory();
      let failed = 0;
      for (let nth = 0; ; nth++) {
        const layer = new MoELayer(spec, tensors, options);
        await layer.ready();
        driver.fail("copyToDevice", { skip: nth });
        const error = await layer.forward(hidden).catch((reason: unknown) => reason);
        await layer.close();
        assert.equal(device.memory().allocations, allocations, `after copy ${nth}`);
        if (!(error instanceof Error)) break;
        failed++;
      }
      assert.ok(failed >= 3, `only ${failed} copies in a step`);
    }));
});
