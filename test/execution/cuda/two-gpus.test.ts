/** Two GPUs in one process: each device asks the driver only with its own context current, however the two take turns. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { type CudaDevice, openOnDriver } from "../../../src/execution/cuda/device.ts";
import { plainSpec, randomLayer } from "../../support/layers.ts";
import { randomFor } from "../../support/seed.ts";
import { EmulatedDriver } from "./emulator/driver.ts";
import { checkLayer } from "./emulator/layers.ts";

/** Calls that act on no context (`Driver`). */
const WITHOUT_CONTEXT: ReadonlySet<PropertyKey> = new Set([
  "deviceCount",
  "deviceFacts",
  "partitionsUnavailable",
]);

/** What is current on the thread that all devices of a process share. */
class HostThread {
  current: EmulatedDriver | undefined;
  turns = 0;
  /** Calls with the other GPU's context current. Kept, as who closes a device passes over what fails then. */
  readonly strays: string[] = [];

  /** The driver as a device on this thread has it. */
  seenFrom(driver: EmulatedDriver): EmulatedDriver {
    return new Proxy(driver, {
      get: (target, name) => {
        const member: unknown = Reflect.get(target, name, target);
        if (typeof member !== "function") return member;
        return (...given: unknown[]) => {
          this.#called(name, driver);
          return Reflect.apply(member, target, given);
        };
      },
    });
  }

  #called(name: PropertyKey, driver: EmulatedDriver): void {
    if (WITHOUT_CONTEXT.has(name)) return;
    if (name === "retainContext" || name === "setCurrent") {
      if (this.current !== driver) this.turns += 1;
      this.current = driver;
    } else if (name !== "releaseContext" && this.current !== driver) {
      this.strays.push(String(name));
    }
  }
}

interface Gpu {
  readonly driver: EmulatedDriver;
  readonly device: CudaDevice;
}

async function withTwo(
  body: (thread: HostThread, first: Gpu, second: Gpu) => Promise<void>,
): Promise<void> {
  const thread = new HostThread();
  const open = async (): Promise<Gpu> => {
    const driver = new EmulatedDriver();
    return { driver, device: await openOnDriver(thread.seenFrom(driver)) };
  };
  const gpus = [await open(), await open()] as const;
  try {
    await body(thread, ...gpus);
  } finally {
    for (const { driver } of gpus) driver.stalled = false;
    await Promise.all(gpus.map(({ device }) => device.close()));
  }
  assert.deepEqual(thread.strays, [], "called with the other GPU's context current");
  for (const { driver } of gpus) {
    assert.deepEqual(driver.violations, []);
    assert.deepEqual(driver.live, {}, "left behind");
  }
}

describe("two GPUs in one process", () => {
  it("have a layer each, whose steps and plans take turns", () =>
    withTwo(async (thread, first, second) => {
      const random = randomFor("two GPUs");
      const parts = [plainSpec(20, 10, 6, 2), plainSpec(12, 9, 5, 3)].map((spec) =>
        randomLayer(random, spec),
      );
      const [one, other] = parts as [(typeof parts)[0], (typeof parts)[0]];
      await Promise.all([
        checkLayer(first.device, random.fork("first"), one, [3, 40], { streams: 2 }),
        checkLayer(second.device, random.fork("second"), other, [2, 33]),
      ]);
      assert.ok(
        thread.turns > 20,
        `they took turns ${thread.turns} times, too few to tell anything`,
      );
    }));

  it("go on while the other one is being closed, which waits for its work", () =>
    withTwo(async (_, first, second) => {
      const random = randomFor("one of two GPUs");
      const parts = randomLayer(random, plainSpec(16, 8, 4, 2));
      const buffer = second.device.allocate(4096, "buffer");
      second.device.write(buffer, new Float32Array(1024));
      second.driver.stalled = true;
      let closed = false;
      const closing = second.device.close().then(() => {
        closed = true;
      });
      await checkLayer(first.device, random, parts, [1, 20]);
      assert.equal(closed, false, "the other one was closed with work left to do");
      second.driver.stalled = false;
      await closing;
    }));

  it("divide their multiprocessors, and drop graphs and partitions, by turns", () =>
    withTwo(async (thread, first, second) => {
      const random = randomFor("partitions of two GPUs");
      const parts = randomLayer(random, plainSpec(16, 8, 6, 2));
      const options = {
        streams: 3,
        slices: { policy: "proportional", realisation: "partitioned" },
      } as const;
      await Promise.all(
        [first, second].map(async ({ device }, i) => {
          const own = random.fork(`${i}`);
          for (const tokens of [20, 40]) await checkLayer(device, own, parts, [tokens], options);
        }),
      );
      for (const { driver } of [first, second]) {
        assert.ok(driver.count("createPartitions") > 0, "nothing was divided");
      }
      assert.ok(thread.turns > 20, `they took turns ${thread.turns} times`);
    }));

  it("copy and read by turns", () =>
    withTwo(async (_, ...gpus) => {
      const buffers = gpus.map(({ device }, i) => {
        const buffer = device.allocate(4096, `buffer ${i}`);
        device.write(buffer, new Float32Array(1024).fill(i + 1));
        return buffer;
      });
      const found = buffers.map(() => new Float32Array(1024));
      await Promise.all(
        gpus.map(({ device }, i) => device.read(buffers[i] as never, found[i] as Float32Array)),
      );
      assert.deepEqual(
        found.map((values) => new Set(values)),
        [new Set([1]), new Set([2])],
      );
      for (const buffer of buffers) buffer[Symbol.dispose]();
    }));
});
