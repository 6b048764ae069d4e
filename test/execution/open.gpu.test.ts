/** What is opened where there is a GPU that can be used. */

import assert from "node:assert/strict";
import { defaultDevice, openDevice } from "../../src/execution/open.ts";
import { probeMachine } from "../../src/execution/probe.ts";
import { gpuTest } from "../gpu/gpu.ts";

gpuTest("the GPU is taken where it may be chosen", async () => {
  for (const options of [{}, { kind: "auto" }, { float32: "tf32" }, { ordinal: 0 }] as const) {
    await using device = await openDevice(options);
    assert.equal(device.properties.kind, "cuda", JSON.stringify(options));
  }
  await using shared = await defaultDevice();
  assert.equal(shared.properties.kind, "cuda");
});

gpuTest("the doctor says that it is", async (device) => {
  for (const asked of ["auto", "cuda"] as const) {
    const { canRun, summary } = await probeMachine(asked);
    assert.ok(canRun, summary);
    assert.ok(summary.startsWith(`Nexus runs here on the GPU: ${device.properties.name}`), summary);
  }
});
