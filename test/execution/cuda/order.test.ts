/** Order: within a stream, between streams by events, in captures; and what may not be captured. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { DisposedError, InvalidArgumentError } from "../../../src/errors.ts";
import type { DeviceBuffer, DeviceEvent, Stream } from "../../../src/execution/device.ts";
import { between, chance, pick, randomFor } from "../../support/seed.ts";
import { enqueue, openFake, operand, readValue, withFake } from "./harness.ts";

/** A random program over a few streams; every operator reads only what streams and events order before it. */
interface Plan {
  readonly steps: readonly (
    | {
        readonly do: "work";
        readonly stream: number;
        readonly a: number;
        readonly b: number;
        readonly beside: boolean;
        /** Whether what is beside is tidying, and whether this work does some that was put off. */
        readonly tidying: boolean;
        readonly tidiesUp: boolean;
        /** Whether it could do its own. */
        readonly tidiesOwn: boolean;
        /** Result of which a copy was made beside, to be read instead of it. */
        readonly copyOf?: number;
      }
    | { readonly do: "record" | "wait"; readonly stream: number; readonly event: number }
  )[];
  readonly streams: number;
  readonly expected: readonly number[];
}

function randomPlan(seed: string): Plan {
  const random = randomFor(seed);
  const streams = between(random, 1, 8);
  const steps: Plan["steps"][number][] = [];
  // Which results each stream may read, and what each event stands for.
  const seen = Array.from({ length: streams }, () => new Set<number>());
  const events: Set<number>[] = [];
  const expected: number[] = [];
  const copied: number[] = [];
  // All streams begin after the first operator of stream 0, as a capture demands.
  steps.push(
    {
      do: "work",
      stream: 0,
      a: -1,
      b: -1,
      beside: false,
      tidying: false,
      tidiesUp: false,
      tidiesOwn: false,
    },
    { do: "record", stream: 0, event: 0 },
  );
  expected.push(1);
  events.push(new Set([0]));
  seen[0]?.add(0);
  for (let s = 1; s < streams; s++) {
    steps.push({ do: "wait", stream: s, event: 0 });
    seen[s]?.add(0);
  }
  for (let i = 0; i < 60; i++) {
    const stream = random.integer(streams);
    const mine = seen[stream] as Set<number>;
    if (chance(random, 0.2)) {
      steps.push({ do: "record", stream, event: events.length });
      events.push(new Set(mine));
    } else if (chance(random, 0.25)) {
      const event = random.integer(events.length);
      steps.push({ do: "wait", stream, event });
      for (const result of events[event] as Set<number>) mine.add(result);
    } else {
      const [a, b] = [pick(random, [...mine]), pick(random, [...mine])];
      const beside = chance(random, 0.3);
      const [tidying, tidiesUp] = [chance(random, 0.5), chance(random, 0.4)];
      const tidiesOwn = chance(random, 0.4);
      // What was copied beside may be read by whoever waits for all that is beside.
      const copyOf = copied.length > 0 && chance(random, 0.3) ? pick(random, copied) : undefined;
      steps.push({
        do: "work",
        stream,
        a: copyOf ?? a,
        b,
        beside,
        tidying,
        tidiesUp,
        tidiesOwn,
        ...(copyOf !== undefined && { copyOf }),
      });
      if (beside) copied.push(expected.length);
      mine.add(expected.length);
      expected.push((expected[copyOf ?? a] as number) / 2 + (expected[b] as number) / 2 + 1);
    }
  }
  return { steps, streams, expected: expected.map(Math.fround) };
}

describe("streams and events", () => {
  it("order work, eagerly and in graphs, in any realisation", async () => {
    for (let round = 0; round < 12; round++) {
      const plan = randomPlan(`order ${round}`);
      await withFake(async ({ device, driver }) => {
        if (round % 3 === 1) device.setComputeBudgets({ realisation: "shared", units: [40, 9] });
        if (round % 3 === 2) {
          device.setComputeBudgets({ realisation: "partitioned", units: [0, 16, 30] });
        }
        const streams = Array.from({ length: plan.streams }, (_, i) =>
          device.createStream({ group: (i + round) % 8, priority: i % 3 }),
        );
        const zero = operand(device);
        const results = plan.expected.map(() => operand(device));
        const copies = plan.expected.map(() => operand(device));
        const events: DeviceEvent[] = [];
        const all = () => {
          let next = 0;
          for (const step of plan.steps) {
            const stream = streams[step.stream] as Stream;
            if (step.do === "work") {
              const { a, b, beside, copyOf, tidying, tidiesUp, tidiesOwn } = step;
              enqueue(stream, {
                a: copyOf === undefined ? (results[a] ?? zero) : (copies[copyOf] as DeviceBuffer),
                b: results[b] ?? zero,
                output: results[next] as DeviceBuffer,
                ...(beside && { beside: copies[next] as DeviceBuffer, tidying }),
                tidiesUp,
                tidiesOwn,
                afterBeside: copyOf !== undefined,
              });
              next += 1;
            } else {
              events[step.event] ??= device.createEvent("event");
              stream[step.do](events[step.event] as DeviceEvent);
            }
          }
        };
        const spoil = () => {
          // Whoever reads it too early next time reads this.
          const nothing = new Float32Array(4).fill(Number.NaN);
          for (const buffer of [...results, ...copies]) device.write(buffer, nothing);
        };
        const works = plan.steps.filter((step) => step.do === "work");
        const copied = [...works.keys()].filter((i) => works[i]?.beside);
        const verify = async (how: string) => {
          const check = async (i: number, buffer: DeviceBuffer | undefined, what: string) => {
            const want = plan.expected[i] as number;
            const got = await readValue(device, buffer as DeviceBuffer);
            const told = `round ${round}, ${how}: ${what} ${i} is ${got}, not ${want}`;
            assert.ok(Math.abs(got - want) < 1e-5, told);
          };
          for (const i of results.keys()) await check(i, results[i], "result");
          for (const i of copied) await check(i, copies[i], "copy of result");
        };
        spoil();
        all();
        const eager = device.synchronize();
        await eager;
        const eagerLaunches = driver.launches.splice(0).map(summary).sort();
        await verify("eager");
        const graph = device.capture(streams[0] as Stream, all);
        assert.equal(graph.nodes, results.length);
        for (let launch = 0; launch < 3; launch++) {
          spoil();
          await graph.launch();
          await verify("replayed");
          assert.deepEqual(driver.launches.splice(0).map(summary).sort(), eagerLaunches);
        }
      });
    }
  });

  it("lets work of earlier submissions hold nobody up", async () => {
    await withFake(async ({ device }) => {
      const [a, b] = [0, 1].map(() => device.createStream({ group: 0, priority: 0 })) as [
        Stream,
        Stream,
      ];
      const event = device.createEvent("earlier");
      const [zero, first, second] = [operand(device, 0), operand(device), operand(device)];
      enqueue(a, { a: zero, b: zero, output: first });
      a.record(event);
      await device.synchronize();
      b.wait(event);
      enqueue(b, { a: first, b: first, output: second });
      await device.synchronize();
      assert.equal(await readValue(device, second), 2);
    });
  });

  it("waits for everything submitted, even with nothing of its own to submit", async () => {
    await withFake(async ({ device, driver }) => {
      const stream = device.createStream({ group: 0, priority: 0 });
      const [zero, output] = [operand(device, 0), operand(device)];
      await device.synchronize();
      const graph = device.capture(stream, () => enqueue(stream, { a: zero, b: zero, output }));
      let finished = 0;
      for (let i = 0; i < 5; i++) void graph.launch().then(() => finished++);
      await device.synchronize();
      assert.equal(finished, 5);
      assert.equal(driver.launches.length, 5);
      await device.synchronize();
      // Events alone are nothing to run.
      stream.record(device.createEvent("alone"));
      await device.synchronize();
    });
  });

  it("reads what launches made that were not waited for, and that waited for their turn", async () => {
    await withFake(async ({ device }) => {
      const stream = device.createStream({ group: 0, priority: 0 });
      const sum = operand(device, 0);
      // Each launch adds one.
      const graph = device.capture(stream, () => enqueue(stream, { a: sum, b: sum, output: sum }));
      const launches: Promise<void>[] = [];
      for (const expected of [1, 3, 6]) {
        for (let i = launches.length; i < expected; i++) launches.push(graph.launch());
        assert.equal(await readValue(device, sum), expected);
      }
      // Before what is launched later.
      const reading = readValue(device, sum);
      launches.push(graph.launch(), graph.launch());
      assert.equal(await reading, 6);
      await Promise.all(launches);
    });
  });

  it("issues one submission at a time and leaves the event loop alone", async () => {
    await withFake(async ({ device, driver }) => {
      const stream = device.createStream({ group: 0, priority: 0 });
      const [zero, output] = [operand(device, 0), operand(device)];
      const graph = device.capture(stream, () => enqueue(stream, { a: zero, b: zero, output }));
      driver.stalled = true;
      const launches = [graph.launch(), graph.launch()];
      let done = false;
      const all = Promise.all(launches).then(() => {
        done = true;
      });
      let ticks = 0;
      const timer = setInterval(() => ticks++, 5);
      await new Promise((resolve) => setTimeout(resolve, 100));
      clearInterval(timer);
      assert.ok(ticks >= 5, `${ticks} ticks in 100 ms`);
      assert.equal(done, false);
      assert.equal(driver.count("launchGraph"), 1);
      assert.equal(driver.count("synchronizeStream"), 0);
      driver.stalled = false;
      await all;
      assert.equal(driver.count("launchGraph"), 2);
    });
  });

  it("has no stream wait for itself, which would keep its kernels from starting early", async () => {
    await withFake(async ({ device, driver }) => {
      const stream = device.createStream({ group: 0, priority: 0 });
      const [zero, output] = [operand(device, 0), operand(device)];
      const event = device.createEvent("between");
      const waits = driver.count("waitEvent");
      const graph = device.capture(stream, () => {
        enqueue(stream, { a: zero, b: zero, output });
        stream.record(event);
        stream.wait(event);
        enqueue(stream, { a: output, b: output, output });
      });
      assert.equal(driver.count("waitEvent"), waits);
      await graph.launch();
      assert.equal(await readValue(device, output), 2);
    });
  });

  it("refuses what cannot be ordered", async () => {
    await withFake(async ({ device }) => {
      const stream = device.createStream({ group: 0, priority: 0 });
      const other = device.createStream({ group: 0, priority: 0 });
      const [zero, output] = [operand(device, 0), operand(device)];
      const work = () => enqueue(stream, { a: zero, b: zero, output });
      const refused = (body: () => void, pattern: RegExp, type: unknown = InvalidArgumentError) =>
        assert.throws(
          body,
          (error) => error instanceof (type as typeof Error) && pattern.test(error.message),
          String(pattern),
        );
      const never = device.createEvent("never");
      refused(() => stream.wait(never), /"never" was never recorded/);
      refused(() => device.capture(stream, () => {}), /Nothing was enqueued/);
      refused(() => device.capture(stream, async () => {}), /returned a promise/);
      // Its rejection, which nobody else can see, must not end the process.
      refused(() => device.capture(stream, () => Promise.reject(never)), /returned a promise/);
      refused(() => device.capture(stream, () => device.capture(stream, work)), /cannot be nested/);
      refused(() => device.capture(other, work), /not part of the capture/);
      refused(() => device.capture(other, () => stream.record(never)), /not part of the capture/);

      const outside = device.createEvent("outside");
      stream.record(outside);
      refused(() => device.capture(stream, () => stream.wait(outside)), /outside the capture/);
      const inside = device.createEvent("inside");
      const graph = device.capture(stream, () => {
        work();
        stream.record(inside);
      });
      refused(() => stream.wait(inside), /in a capture/);
      refused(() => device.capture(stream, () => stream.wait(inside)), /in a capture/);

      let late: Promise<void> | undefined;
      device.capture(stream, () => {
        work();
        late = Promise.all([
          assert.rejects(graph.launch(), /inside a capture/),
          assert.rejects(device.synchronize(), /inside a capture/),
        ]).then(() => {});
      });
      await late;

      const boom = new Error("boom");
      assert.throws(() => {
        device.capture(stream, () => {
          throw boom;
        });
      }, boom);
      for (const group of [-1, 8, 0.5]) {
        refused(() => device.createStream({ group, priority: 0 }), new RegExp(`group is ${group}`));
      }
      refused(() => device.createStream({ group: 0, priority: 0.5 }), /priority is 0\.5/);
      refused(() => stream.record({} as DeviceEvent), /not one of this device/);
      refused(() => device.capture({} as Stream, work), /not one of this device/);

      never[Symbol.dispose]();
      never[Symbol.dispose]();
      refused(() => stream.record(never), /Event "never" is closed/, DisposedError);
      other[Symbol.dispose]();
      other[Symbol.dispose]();
      refused(() => enqueue(other, { a: zero, b: zero, output }), /closed/, DisposedError);
      refused(() => device.capture(other, work), /closed/, DisposedError);
      // After all that the device works.
      work();
      await device.synchronize();
      assert.equal(await readValue(device, output), 1);
    });
  });

  it("keeps devices apart", async () => {
    await withFake(async ({ device }) => {
      const foreign = openFake().device;
      const stream = device.createStream({ group: 0, priority: 0 });
      const output = operand(device);
      assert.throws(() => stream.record(foreign.createEvent("theirs")), InvalidArgumentError);
      assert.throws(() => device.write(operand(foreign), Int32Array.of(1)), InvalidArgumentError);
      assert.throws(
        () => enqueue(stream, { a: operand(foreign), b: output, output: operand(device) }),
        InvalidArgumentError,
      );
      const theirs = foreign.createStream({ group: 0, priority: 0 });
      assert.throws(() => device.capture(theirs, () => {}), InvalidArgumentError);
      await foreign.close();
    });
  });
});

function summary({
  grid,
  partition,
  priority,
}: {
  grid: object;
  partition: unknown;
  priority: number;
}) {
  return JSON.stringify([grid, partition, priority], (_, value) =>
    typeof value === "bigint" ? String(value) : value,
  );
}
