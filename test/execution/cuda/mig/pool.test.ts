/**
 * Workers on MIG instances, which open the CPU device here: what they are asked for,
 * how they fail, and that none outlives its program.
 */

import assert from "node:assert/strict";
import { ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { after, before, describe, it } from "node:test";
import { setTimeout as pause, setImmediate as turn } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import {
  DeviceFailedError,
  DeviceUnavailableError,
  DisposedError,
  InvalidArgumentError,
  NexusError,
} from "../../../../src/errors.ts";
import {
  type MigPool,
  MigWorker,
  openMigPool,
  openPool,
} from "../../../../src/execution/cuda/mig/pool.ts";
import { NvmlError } from "../../../../src/execution/cuda/nvml/errors.ts";
import type { MigInstance } from "../../../../src/execution/device.ts";
import { CODE, FakeNvml, h200, largeInstance, smallInstance } from "../nvml/fake-nvml.ts";

const tasks = new URL("./tasks.js", import.meta.url);

function instance(number: number): MigInstance {
  return {
    uuid: `MIG-${number}`,
    gpu: 0,
    gpuInstance: number,
    computeInstance: 0,
    profile: "1g.18gb",
    computeUnits: 16,
    memoryBytes: 2 ** 34,
  };
}

function failure<E extends NexusError>(type: abstract new (...args: never[]) => E, text: RegExp) {
  return (error: unknown) => {
    assert.ok(error instanceof type, String(error));
    assert.match(error.message, text);
    return true;
  };
}

async function goneWithin(milliseconds: number, pid: number): Promise<boolean> {
  for (const end = Date.now() + milliseconds; Date.now() < end; await pause(20)) {
    if (!isThere(pid)) return true;
  }
  return false;
}

function isThere(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}

/** Whether a child keeps this process alive. */
function holdsProcess(): boolean {
  return process.getActiveResourcesInfo().includes("ProcessWrap");
}

describe("a pool", () => {
  let pool: MigPool;
  before(async () => {
    pool = await openMigPool({ instances: [instance(1), instance(2)], device: "cpu" });
  });
  after(() => pool.close());

  it("has a process for each instance, which sees nothing else", async () => {
    const [first, second] = pool.workers;
    assert.notEqual(first?.pid, second?.pid);
    assert.equal(first?.properties.kind, "cpu");
    const results = await Promise.all(
      pool.workers.map((each) => each.run(tasks, "sum", [1, 2, 3])),
    );
    assert.deepEqual(results, [
      { sum: 6, sees: "MIG-1" },
      { sum: 6, sees: "MIG-2" },
    ]);
  });

  it("does one thing after the other in a worker, and keeps what is there", async () => {
    const [worker] = pool.workers;
    const file = fileURLToPath(tasks);
    assert.deepEqual(await Promise.all([1, 2, 3].map(() => worker?.run(file, "count"))), [1, 2, 3]);
    const before = await worker?.memory();
    await worker?.run(tasks, "hold", 4096);
    const held = await worker?.memory();
    assert.equal((held?.usedBytes ?? 0) - (before?.usedBytes ?? 0) >= 4096, true);
  });

  it("passes on how a function failed, and goes on", async () => {
    const [worker] = pool.workers;
    assert.ok(worker);
    await assert.rejects(worker.run(tasks, "fail"), (error: unknown) => {
      assert.ok(error instanceof NexusError);
      assert.equal(error.code, "ERR_WORKER_TASK");
      assert.match(error.message, /^"fail" of file:.* failed on The worker on MIG instance MIG-1/);
      assert.match((error.cause as Error).stack ?? "", /TypeError: no such luck\n.*tasks\.js/s);
      return true;
    });
    await assert.rejects(worker.run(tasks, "tooMuch"), (error: unknown) => {
      assert.equal((error as NexusError).code, "ERR_OUT_OF_DEVICE_MEMORY");
      return true;
    });
    await assert.rejects(worker.run(tasks, "missing"), failure(NexusError, /exports no function/));
    await assert.rejects(worker.run(tasks, "notAFunction"), failure(NexusError, /no function/));
    await assert.rejects(worker.run("./nowhere.js", "x"), failure(NexusError, /nowhere\.js/));
    await assert.rejects(worker.run(tasks, "notJson"), failure(NexusError, /JSON cannot carry/));
    await assert.rejects(
      worker.run(tasks, "count", 1n),
      failure(InvalidArgumentError, /JSON cannot carry/),
    );
    assert.equal(await worker.run(tasks, "count"), 4);
  });
});

describe("a pool of what NVML lists", () => {
  const divided = {
    ...h200(1),
    mig: { current: true, pending: true, places: [smallInstance, null, largeInstance] },
  };

  it("works on every instance of the GPUs that have some, until it is closed", async () => {
    const library = new FakeNvml(h200(0), divided);
    const pool = await openPool({ device: "cpu" }, library);
    // Listing is all that NVML is for.
    assert.equal(library.sessions, 0);
    assert.deepEqual(
      pool.workers.map(({ instance }) => instance),
      [
        {
          uuid: smallInstance.uuid,
          gpu: 1,
          gpuInstance: 7,
          computeInstance: 0,
          profile: "1g.18gb",
          computeUnits: 16,
          memoryBytes: 2 ** 34,
        },
        {
          uuid: largeInstance.uuid,
          gpu: 1,
          gpuInstance: 2,
          computeInstance: 1,
          profile: "1c.3g.71gb",
          computeUnits: 60,
          memoryBytes: 2 ** 34,
        },
      ],
    );
    const pids = pool.workers.map(({ pid }) => pid ?? 0);
    assert.equal(new Set([process.pid, ...pids]).size, 3);
    const results = await Promise.all(
      pool.workers.map((each, i) => each.run(tasks, "sum", [i, 40])),
    );
    assert.deepEqual(results, [
      { sum: 40, sees: smallInstance.uuid },
      { sum: 41, sees: largeInstance.uuid },
    ]);
    await pool.close();
    assert.deepEqual(pids.map(isThere), [false, false]);
    for (const worker of pool.workers) await assert.rejects(worker.memory(), DisposedError);
  });

  it("is refused where there is none, for each GPU's reason", async () => {
    const empty = { ...h200(1), mig: { current: true, pending: true, places: [null] } };
    for (const [gpus, message] of [
      [
        [h200(0)],
        /^There are no MIG instances to work on\. MIG is off on GPU 0 \(NVIDIA H200\); .* nvidia-smi -i 0 -mig 1\.$/,
      ],
      [[h200(0), empty], /MIG is off on GPU 0 .*\. MIG is on but GPU 1 .* has no instance .*-cgi/],
      [[], /^There are no MIG instances to work on\. NVML lists no GPU\.$/],
    ] as const) {
      const library = new FakeNvml(...gpus);
      const opening = openPool({ device: "cpu" }, library);
      await assert.rejects(opening, failure(DeviceUnavailableError, message));
      assert.equal(library.sessions, 0);
    }
  });

  it("is refused as NVML fails", async () => {
    const library = new FakeNvml(divided);
    library.failing.set("nvmlDeviceGetMigMode", CODE.GPU_IS_LOST);
    await assert.rejects(openPool({ device: "cpu" }, library), NvmlError);
    assert.equal(library.sessions, 0);
  });
});

describe("a worker", () => {
  it("that dies fails what was asked of it, by instance and exit code, and nothing else", async () => {
    const pool = await openMigPool({ instances: [instance(1), instance(2)], device: "cpu" });
    const [dying, other] = pool.workers;
    assert.ok(dying && other);
    const results = await Promise.allSettled([
      dying.run(tasks, "die", 3),
      dying.run(tasks, "count"),
      other.run(tasks, "count"),
    ]);
    for (const result of results.slice(0, 2)) {
      assert.equal(result.status, "rejected");
      failure(
        DeviceFailedError,
        /MIG-1 \(1g\.18gb of GPU 0\) ended with exit code 3\. /,
      )((result as PromiseRejectedResult).reason);
    }
    assert.deepEqual(results[2], { status: "fulfilled", value: 1 });
    await assert.rejects(dying.memory(), failure(DeviceFailedError, /exit code 3/));
    await assert.rejects(other.run(tasks, "crash"), failure(DeviceFailedError, /by SIGSEGV/));
    await pool.close();
  });

  it("is closed twice, and at once where it is busy", async () => {
    const worker = await MigWorker.open(instance(1), "cpu");
    const hanging = assert.rejects(worker.run(tasks, "hang"), DisposedError);
    await pause(50);
    const start = Date.now();
    await Promise.all([worker.close(), worker.close(), worker[Symbol.asyncDispose]()]);
    assert.ok(Date.now() - start < 2000);
    await hanging;
    await worker.close();
    await assert.rejects(worker.run(tasks, "count"), DisposedError);
    assert.ok(await goneWithin(1000, worker.pid ?? 0));
  });

  it("is not left behind where another instance cannot be opened", async () => {
    // No driver here, or one that does not know these instances.
    await assert.rejects(
      openMigPool({ instances: [instance(1), instance(2)] }),
      failure(DeviceUnavailableError, /^Opening the device failed on .*MIG-1 /),
    );
    await assert.rejects(openMigPool({ instances: [] }), DeviceUnavailableError);
    await assert.rejects(
      openMigPool({ instance: [instance(1)] } as object),
      /options\.instance is unknown; use instances, device\./,
    );
  });

  it("that hangs as it opens its device is given up after a minute, and ended", async (t) => {
    const folder = mkdtempSync(path.join(tmpdir(), "nexus-hanging-"));
    const before = process.env["NODE_OPTIONS"];
    process.env["NODE_OPTIONS"] = `--import=${new URL("./hang.js", import.meta.url)}`;
    process.env["NEXUS_TEST_HANGING"] = folder;
    t.mock.timers.enable({ apis: ["setTimeout"] });
    try {
      const opening = openMigPool({ instances: [instance(1), instance(2)], device: "cpu" });
      const refused = assert.rejects(
        opening,
        failure(DeviceUnavailableError, /MIG-1 .* did not open its device within 60 s\..*dmesg/),
      );
      while (readdirSync(folder).length < 2) await turn();
      t.mock.timers.tick(59_999);
      assert.equal(await Promise.race([opening, turn("not yet")]), "not yet");
      t.mock.timers.tick(1);
      await refused;
    } finally {
      t.mock.timers.reset();
      if (before === undefined) delete process.env["NODE_OPTIONS"];
      else process.env["NODE_OPTIONS"] = before;
    }
    for (const pid of readdirSync(folder)) assert.ok(await goneWithin(5000, Number(pid)), pid);
    rmSync(folder, { recursive: true });
  });

  it("that cannot be ended holds up neither closing nor this process", {
    timeout: 20_000,
  }, async (t) => {
    const pool = await openMigPool({ instances: [instance(1)], device: "cpu" });
    const pid = pool.workers[0]?.pid ?? 0;
    t.after(() => process.kill(pid, "SIGKILL"));
    // It neither answers nor takes a signal of the pool's.
    process.kill(pid, "SIGSTOP");
    const kill = t.mock.method(ChildProcess.prototype, "kill", () => true);
    t.mock.timers.enable({ apis: ["setTimeout"] });
    const closing = pool.close();
    for (const milliseconds of [5000, 2000]) {
      assert.equal(holdsProcess(), true);
      t.mock.timers.tick(milliseconds);
      await turn();
    }
    await closing;
    const signals = kill.mock.calls.map((call) => call.arguments);
    assert.deepEqual(signals, [["SIGKILL"]]);
    assert.equal(holdsProcess(), false);
    assert.equal(isThere(pid), true);
  });

  for (const how of ["wait", "end"]) {
    it(`does not outlive its program (${how})`, { timeout: 20_000 }, async () => {
      const parent = fileURLToPath(new URL("./parent.js", import.meta.url));
      const child = spawn(process.execPath, [parent, how], {
        stdio: ["ignore", "pipe", "inherit"],
      });
      const [line] = (await once(child.stdout, "data")) as [Buffer];
      const pid = Number(line.toString());
      assert.ok(pid > 0);
      const exited = once(child, "exit");
      if (how === "wait") child.kill("SIGKILL");
      const [code] = await exited;
      assert.equal(code, how === "wait" ? null : 0);
      assert.ok(await goneWithin(5000, pid), `worker ${pid} is still there`);
    });
  }
});
