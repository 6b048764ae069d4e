/** Submissions one after the other: their order, and how they end where the driver refuses something. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { DeviceFailedError, InvalidLogitsError } from "../../../src/errors.ts";
import { CudaBudgets } from "../../../src/execution/cuda/budgets.ts";
import { Context } from "../../../src/execution/cuda/driver/context.ts";
import { EventPool } from "../../../src/execution/cuda/driver/events.ts";
import { type Job, Timeline } from "../../../src/execution/cuda/timeline.ts";
import type { Stream } from "../../../src/execution/device.ts";
import { failed } from "./fake-calls.ts";
import { FakeDriver } from "./fake-driver.ts";
import { BLOCKS, enqueue, operand, withFake } from "./harness.ts";

const BUDGETS = new CudaBudgets(1, { units: [] });

/** A timeline that writes down what it does. */
function timeline() {
  const driver = new FakeDriver();
  const context = new Context(driver, 0);
  const events = new EventPool(driver, false);
  const line = new Timeline(driver, context, events, driver.createStream(0));
  const log: string[] = [];
  const submit = (name: string, changes: Partial<Job> = {}): Promise<void> => {
    const job: Job = {
      prepare: () => log.push(`prepare ${name}`),
      issue: () => log.push(`issue ${name}`),
      finish: () => void log.push(`finish ${name}`),
      ...changes,
    };
    return line.submit(job, BUDGETS).then(
      () => void log.push(`${name} resolved`),
      (error: Error) => void log.push(`${name} rejected: ${error.message}`),
    );
  };
  return { driver, line, log, submit };
}

function refuse(result: number): () => never {
  return () => {
    throw failed("cuThatCall", result);
  };
}

describe("a timeline", () => {
  it("begins a submission when the one before it has told its faults", async () => {
    const { log, submit } = timeline();
    const finish = () => new InvalidLogitsError(7);
    await Promise.all([submit("a", { finish }), submit("b")]);
    assert.deepEqual(log.slice(0, 4), ["prepare a", "issue a", "prepare b", "issue b"]);
    assert.match(log.slice(4).join(), /^a rejected: .*row 7.*,finish b,b resolved$/);
  });

  it("puts what is to come in turn there at once, or behind submissions that wait", async () => {
    const { line, log, submit } = timeline();
    const inTurn = (name: string) =>
      line
        .inTurn(() => log.push(`enqueue ${name}`), BUDGETS)
        .then(
          () => void log.push(`${name} is there`),
          (error: Error) => void log.push(`${name} rejected: ${error.message}`),
        );
    const all = [inTurn("x"), submit("a"), inTurn("y"), submit("b"), inTurn("z"), submit("c")];
    assert.deepEqual(log, ["enqueue x", "prepare a", "issue a", "enqueue y"]);
    await Promise.all(all);
    const order = log.filter((text) => /^(issue|enqueue) /.test(text));
    assert.deepEqual(order, [
      "enqueue x",
      "issue a",
      "enqueue y",
      "issue b",
      "enqueue z",
      "issue c",
    ]);
    assert.ok(log.indexOf("enqueue z") < log.indexOf("z is there"));
    line.stop(new DeviceFailedError("That was all."));
    await inTurn("late");
    assert.deepEqual(log.slice(-1), ["late rejected: That was all."]);
  });

  it("rejects what waits when finding out about a submission fails, that one included", async () => {
    const { line, log, submit } = timeline();
    const all = [submit("a", { finish: refuse(700) }), submit("b")];
    line.afterwards(() => log.push("after b"));
    await Promise.all(all);
    assert.ok(line.end instanceof DeviceFailedError);
    assert.match(log.join(), /^prepare a,issue a,a rejected: .*700.*,b rejected: .*700[^,]*/);
    assert.ok(!log.includes("after b"));
    await line.drain();
    assert.equal(log.at(-1), "after b");
  });

  it("does what waited for a submission that failed like that, once the GPU is idle", async () => {
    const { line, log, submit } = timeline();
    const a = submit("a", { finish: refuse(700) });
    line.afterwards(() => log.push("after a"));
    await a;
    await line.drain();
    assert.equal(log.at(-1), "after a");
  });

  it("goes on after a submission that the driver does not let begin", async () => {
    const { line, log, submit } = timeline();
    const all = [submit("a"), submit("b", { prepare: refuse(801) })];
    line.afterwards(() => log.push("after b"));
    all.push(submit("c", { prepare: refuse(801) }), submit("d"));
    await Promise.all(all);
    assert.equal(line.end, undefined);
    const outcomes = log.filter((text) => !/^(prepare|finish) /.test(text));
    assert.match(
      outcomes.join(),
      /^issue a,a resolved,after b,b rejected: cuThatCall .*801.*,issue d,c rejected: .*801.*,d resolved$/,
    );
    // The end of a submission that never began is told when all before it is over.
    const first = submit("e", { prepare: refuse(801) });
    const reached = line.reached().then(() => log.push("reached"));
    await Promise.all([first, reached]);
    assert.match(log.slice(-2).join(), /^e rejected: .*,reached$/);
  });

  it("ends where beginning shows that the context is lost, or a mistake", async () => {
    const mistake = () => {
      throw new TypeError("That is no budget.");
    };
    for (const [prepare, reason] of [[refuse(700), /700/] as const, [mistake, /budget/] as const]) {
      const { line, log, submit } = timeline();
      await Promise.all([submit("a", { prepare }), submit("b")]);
      assert.match(line.end?.message ?? "", reason);
      assert.deepEqual(
        log.map((text) => text.slice(0, 10)),
        ["a rejected", "b rejected"],
      );
    }
  });
});

describe("a device", () => {
  it("ends when it cannot forget a fault, and says so to the launch that had it", async () => {
    await withFake(async ({ device, driver }) => {
      const stream = device.createStream({ group: 0, priority: 0 }) as Stream;
      const [a, output] = [operand(device, 1), operand(device)];
      enqueue(stream, { a, b: a, output, faultyRow: 3 });
      driver.fail("fillWords", { skip: 2, result: 700 });
      await assert.rejects(device.synchronize(), /fillWords failed.*700/);
      assert.equal(device.closed, true);
    });
  });

  it("stays open when the driver refuses the cache budgets of a submission", async () => {
    await withFake(async ({ device, driver }) => {
      const stream = device.createStream({ group: 0, priority: 0 }) as Stream;
      const [zero, output] = [operand(device, 0), operand(device)];
      const launchEagerly = () => {
        enqueue(stream, { a: zero, b: zero, output });
        return device.synchronize();
      };
      const graph = device.capture(stream, () => enqueue(stream, { a: zero, b: zero, output }));
      device.setComputeBudgets({ realisation: "shared", units: [66], cacheBytes: [2 ** 20] });
      const { pinned } = driver.live;
      for (const launch of [launchEagerly, () => graph.launch()]) {
        for (let i = 0; i < 400; i++) {
          driver.fail("setPersistingL2Limit", { result: 801 });
          await assert.rejects(launch(), /setPersistingL2Limit failed.*801/);
        }
        assert.equal(device.closed, false);
      }
      assert.equal(driver.launches.length, 0);
      // What was enqueued is given back.
      assert.equal(driver.live["pinned"], pinned);
      await launchEagerly();
      await graph.launch();
      assert.equal(driver.launches.length, 2);
      assert.equal(driver.persistingL2, 2 ** 20);
    });
  });

  it("gives back what was enqueued once it has run, or if a buffer of it is closed before", async () => {
    await withFake(async ({ device, driver }) => {
      const stream = device.createStream({ group: 0, priority: 0 }) as Stream;
      const output = operand(device);
      const pinned = driver.live["pinned"] ?? 0;
      for (let i = 0; i < 1000; i++) {
        const closed = operand(device);
        enqueue(stream, { a: closed, b: closed, output });
        closed[Symbol.dispose]();
        await assert.rejects(device.synchronize(), /"operand", which the work uses, is closed/);
        enqueue(stream, { a: output, b: output, output });
        await device.synchronize();
      }
      // Launches are written down in pinned memory, of which one piece has room for many.
      assert.equal(driver.live["pinned"], pinned + 1);
    });
  });

  it("stays open when the driver refuses a grid, and sets those that are left next time", async () => {
    await withFake(async ({ device, driver }) => {
      const streams = [0, 1].map((group) => device.createStream({ group, priority: 0 }));
      const [first, second] = streams as [Stream, Stream];
      const [zero, output, other] = [operand(device, 0), operand(device), operand(device)];
      const begun = device.createEvent("begun");
      const graph = device.capture(first, () => {
        first.record(begun);
        second.wait(begun);
        enqueue(first, { a: zero, b: zero, output });
        enqueue(second, { a: zero, b: zero, output: other });
      });
      await graph.launch();
      driver.launches.splice(0);
      device.setComputeBudgets({ realisation: "shared", units: [60, 40] });
      driver.fail("setNodeLaunch", { skip: 1, result: 801 });
      await assert.rejects(graph.launch(), /setNodeLaunch failed.*801/);
      assert.equal(driver.launches.length, 0);
      await graph.launch();
      const widths = driver.launches.map(({ grid }) => grid.x / BLOCKS);
      assert.deepEqual(
        widths.sort((x, y) => y - x),
        [60, 40],
      );
    });
  });
});
