/** What a call of the launch path leaves on the heap of JavaScript, by the foreign-function layer and a C library that stands for libcuda. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { test } from "node:test";
import { buildFake } from "./fake-cuda.ts";

const built = buildFake();
const skip = typeof built === "string" ? built : false;
if (skip !== false) console.log(`skipped: ${skip}`);

/** Bytes of heap a call, averaged over eight kinds: a single bigint in one of them is 24 / 8. */
const NEXT_TO_NOTHING = 2;

test("calls of the launch path allocate nothing", { skip }, () => {
  // In a process of its own, so that nothing else allocates and the collector can be called.
  const here = import.meta.url;
  const script = `
    const { buildFake } = await import(new URL("./fake-cuda.js", ${JSON.stringify(here)}));
    const structs = new URL("../../../../src/execution/cuda/driver/structs.js", ${JSON.stringify(here)});
    const { LAUNCH_CONFIG } = await import(structs);
    const driver = buildFake().driver();
    driver.retainContext(0);
    const stream = driver.createStream(0);
    const event = driver.createEvent(false);
    const address = driver.allocate(4096);
    const other = driver.allocate(4096);

    const fn = driver.getFunction(driver.loadModule(Buffer.from("good\\0")), "kernel");
    const pinned = driver.allocatePinned(1024);
    new Uint8Array(pinned.bytes).fill(0);
    const view = new DataView(pinned.bytes);
    const [config, params] = [pinned.address, pinned.address + 256n];
    for (let i = 0; i < 3; i++) view.setBigUint64(256 + 8 * i, pinned.address + 512n, true);
    for (let i = 0; i < 6; i++) view.setUint32(LAUNCH_CONFIG.gridX + 4 * i, 1, true);
    view.setBigUint64(LAUNCH_CONFIG.stream, stream, true);

    driver.beginCapture(stream);
    driver.fillWords(address, 0, 1, stream);
    driver.launchKernel(config, fn, params);
    const node = driver.lastCapturedNode(stream);
    const exec = driver.instantiateGraph(driver.endCapture(stream));
    const grid = { x: 2, y: 1, z: 1 };
    const calls = (times) => {
      for (let i = 0; i < times; i++) {
        driver.fillWords(address, 0, 1, stream);
        driver.copyOnDevice(address, other, 16, stream);
        driver.launchKernel(config, fn, params);
        driver.recordEvent(event, stream);
        driver.waitEvent(stream, event);
        driver.eventDone(event);
        driver.setNodeLaunch(exec, node, grid, params);
        driver.launchGraph(exec, stream);
      }
    };
    // The least of a few rounds: what the compiler of JavaScript allocates on the way does not count.
    const rounds = Array.from({ length: 5 }, () => {
      gc();
      const before = process.memoryUsage().heapUsed;
      calls(20000);
      return process.memoryUsage().heapUsed - before;
    });
    console.log(Math.min(...rounds) / 160000);
  `;
  const flags = ["--expose-gc", "--max-semi-space-size=64", "--input-type=module", "-e", script];
  const bytes = Number(execFileSync(process.execPath, flags, { encoding: "utf8" }));
  assert.ok(bytes < NEXT_TO_NOTHING, `${bytes} bytes a call`);
});
