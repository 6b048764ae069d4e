/** Order: within a stream, between streams by events, in captures; and what may not be captured. */

import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { DisposedError, InvalidArgumentError } from "../../../src/errors.ts";
import { type CpuDevice, openCpuDevice } from "../../../src/execution/cpu/device.ts";
import type {
  DeviceBuffer,
  DeviceEvent,
  Stream,
  Substitute,
} from "../../../src/execution/device.ts";
import { between, chance, pick, randomFor } from "../../support/seed.ts";
import { floats, ints, room, upload, withDevice } from "./harness.ts";

let device: CpuDevice;
before(async () => {
  device = await openCpuDevice({ threads: 3 });
});
after(() => device.close());

const anyStream = () => device.createStream({ group: 0, priority: 0 });

/** Work whose result shows what it was given: out = a / 2 + b / 2 + 1, exact in float32 for the depths used here. */
class Averages {
  readonly #tokens = ints(device, 1);
  readonly #inverse = ints(device, 0);
  readonly #half = upload(device, Float32Array.of(0.5));
  readonly #one = upload(device, new Float32Array(WIDTH).fill(1));
  readonly zero = upload(device, new Float32Array(WIDTH));

  enqueue(stream: Stream, a: DeviceBuffer, b: DeviceBuffer, output: DeviceBuffer): void {
    stream.enqueue({
      kind: "combine",
      mode: "sum",
      topK: 1,
      width: WIDTH,
      rows: a,
      shared: b,
      output,
      tokens: this.#tokens,
      inverse: this.#inverse,
      rowType: "float32",
      mostTokens: 1,
      outputType: "float32",
      weights: this.#half,
      sharedScale: this.#half,
      residual: this.#one,
    });
  }
}

/** Wide enough to take a while, so that a reader that starts too early sees the old contents. */
const WIDTH = 4096;

/** A random program over a few streams; every operator reads only what streams and events order before it. */
interface Plan {
  readonly steps: readonly (
    | { readonly do: "work"; readonly stream: number; readonly a: number; readonly b: number }
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
  // All streams begin after the first operator of stream 0, as a capture demands.
  steps.push({ do: "work", stream: 0, a: -1, b: -1 }, { do: "record", stream: 0, event: 0 });
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
      steps.push({ do: "work", stream, a, b });
      mine.add(expected.length);
      expected.push((expected[a] as number) / 2 + (expected[b] as number) / 2 + 1);
    }
  }
  return { steps, streams, expected: expected.map(Math.fround) };
}

describe("streams and events", () => {
  it("order work, eagerly and in graphs, in any realisation", { timeout: 60_000 }, async () => {
    const work = new Averages();
    for (let round = 0; round < 25; round++) {
      const plan = randomPlan(`order ${round}`);
      const realisation = round % 2 === 0 ? "shared" : "partitioned";
      device.setComputeBudgets({ realisation, units: [1, 1, 0.5, 0.5] });
      const streams = Array.from({ length: plan.streams }, (_, i) =>
        device.createStream({ group: i % 8, priority: i % 3 }),
      );
      const results = plan.expected.map(() => room(device, WIDTH));
      const events: DeviceEvent[] = [];
      const enqueue = () => {
        let next = 0;
        for (const step of plan.steps) {
          const stream = streams[step.stream] as Stream;
          if (step.do === "work") {
            const { a, b } = step;
            work.enqueue(
              stream,
              results[a] ?? work.zero,
              results[b] ?? work.zero,
              results[next++] as DeviceBuffer,
            );
          } else {
            events[step.event] ??= device.createEvent("event");
            stream[step.do](events[step.event] as DeviceEvent);
          }
        }
      };
      const verify = async (how: string) => {
        for (const [i, buffer] of results.entries()) {
          const want = plan.expected[i] as number;
          const got = await floats(device, buffer);
          assert.ok(
            got.every((x) => Math.abs(x - want) < 1e-5),
            `round ${round}, ${how}: result ${i} is ${got[0]}, not ${want}`,
          );
          // Whoever reads it too early next time reads this.
          device.write(buffer, new Float32Array(WIDTH).fill(Number.NaN));
        }
      };
      for (const buffer of results) device.write(buffer, new Float32Array(WIDTH).fill(Number.NaN));
      enqueue();
      await device.synchronize();
      await verify("eager");
      using graph = device.capture(streams[0] as Stream, enqueue);
      assert.equal(graph.nodes, results.length);
      for (let launch = 0; launch < 3; launch++) {
        await graph.launch();
        await verify("replayed");
      }
      for (const buffer of results) buffer[Symbol.dispose]();
    }
    device.setComputeBudgets({ realisation: "shared", units: [] });
  });

  it("lets work of earlier submissions hold nobody up", async () => {
    const work = new Averages();
    const [a, b] = [anyStream(), anyStream()];
    const event = device.createEvent("earlier");
    const output = room(device, WIDTH);
    work.enqueue(a, work.zero, work.zero, output);
    a.record(event);
    await device.synchronize();
    b.wait(event);
    work.enqueue(b, output, output, room(device, WIDTH));
    await device.synchronize();
  });

  it("waits for everything submitted, even with nothing of its own to submit", async () => {
    const work = new Averages();
    const stream = anyStream();
    const output = room(device, WIDTH);
    const graph = device.capture(stream, () => work.enqueue(stream, work.zero, work.zero, output));
    let finished = 0;
    for (let i = 0; i < 5; i++) void graph.launch().then(() => finished++);
    await device.synchronize();
    assert.equal(finished, 5);
    await device.synchronize();
  });

  it("reads what launches made that were not waited for", async () => {
    const work = new Averages();
    const stream = anyStream();
    const [first, second] = [room(device, WIDTH), room(device, WIDTH)];
    const graph = device.capture(stream, () => {
      work.enqueue(stream, work.zero, work.zero, first);
      work.enqueue(stream, first, first, second);
    });
    const launches = [graph.launch(), graph.launch()];
    const found = await floats(device, second);
    assert.ok(found.every((each) => each === 2));
    await Promise.all(launches);
    // What its reader has given away by then is not read, and nothing else waits for it.
    const into = new Float32Array(WIDTH);
    const again = graph.launch();
    const reading = device.read(second, into);
    structuredClone(into, { transfer: [into.buffer] });
    await assert.rejects(reading, TypeError);
    await again;
    await graph.launch();
  });

  it("reads what is mirrored as it is, whatever runs", async () => {
    const work = new Averages();
    const stream = anyStream();
    const mirrored = device.allocate(4, "counts", { mirrored: true });
    device.write(mirrored, Int32Array.of(7));
    const output = room(device, WIDTH);
    const graph = device.capture(stream, () => work.enqueue(stream, work.zero, work.zero, output));
    let over = false;
    const launch = graph.launch().then(() => {
      over = true;
    });
    const counts = new Int32Array(1);
    await device.read(mirrored, counts);
    assert.deepEqual([...counts, over], [7, false]);
    await launch;
  });

  it("launches graphs with other buffers in the place of their own, in the order of the calls", async () => {
    const work = new Averages();
    const stream = anyStream();
    const [input, output] = [upload(device, new Float32Array(WIDTH)), room(device, WIDTH)];
    const graph = device.capture(stream, () => work.enqueue(stream, input, input, output));
    const values = [1, 5, 9];
    const byteLength = WIDTH * 4;
    const outputs = values.map(() => room(device, WIDTH));
    const launches = values.map((value, i) => {
      const by = upload(device, new Float32Array(WIDTH).fill(value));
      return graph.launch([
        { buffer: input, by, byteLength, access: "read" },
        { buffer: output, by: outputs[i] as DeviceBuffer, byteLength, access: "write" },
      ]);
    });
    await Promise.all(launches);
    for (const [i, value] of values.entries()) {
      const found = await floats(device, outputs[i] as DeviceBuffer);
      assert.ok(found.every((each) => each === value + 1));
    }
    const refused = (substitutes: unknown, message: RegExp) =>
      assert.rejects(
        graph.launch(substitutes as Substitute[]),
        (error) => error instanceof InvalidArgumentError && message.test(error.message),
      );
    await refused({}, /substitutes is .*must be an array/);
    await refused([{ buffer: input, by: {}, access: "read" }], /not both of the graph's device/);
    const other = { buffer: input, by: outputs[0], byteLength, access: "read" };
    await refused([{ ...other, access: "any" }], /access is "any"/);
    await refused([{ ...other, byteLength: byteLength + 1 }], /so there are no 16385/);
    await refused([{ ...other, buffer: outputs[1] }], /not one that the graph uses/);
    await refused([other, other], /has two substitutes/);
    await refused([other, { ...other, buffer: output, access: "write" }], /Take two buffers/);
  });

  it("refuses what cannot be ordered", async () => {
    const work = new Averages();
    const stream = anyStream();
    const other = anyStream();
    const output = room(device, WIDTH);
    const enqueue = () => work.enqueue(stream, work.zero, work.zero, output);
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
    refused(
      () => device.capture(stream, () => device.capture(stream, enqueue)),
      /cannot be nested/,
    );
    refused(() => device.capture(other, enqueue), /not part of the capture/);
    refused(() => device.capture(other, () => stream.record(never)), /not part of the capture/);

    const outside = device.createEvent("outside");
    stream.record(outside);
    refused(() => device.capture(stream, () => stream.wait(outside)), /outside the capture/);
    const inside = device.createEvent("inside");
    const graph = device.capture(stream, () => {
      enqueue();
      stream.record(inside);
    });
    refused(() => stream.wait(inside), /in a capture/);
    refused(() => device.capture(stream, () => stream.wait(inside)), /in a capture/);

    let late: Promise<void> | undefined;
    device.capture(stream, () => {
      enqueue();
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
    refused(() => device.capture({} as Stream, enqueue), /not one of this device/);

    never[Symbol.dispose]();
    never[Symbol.dispose]();
    refused(() => stream.record(never), /Event "never" is closed/, DisposedError);
    other[Symbol.dispose]();
    other[Symbol.dispose]();
    refused(() => work.enqueue(other, work.zero, work.zero, output), /closed/, DisposedError);
    refused(() => device.capture(other, enqueue), /closed/, DisposedError);
    graph[Symbol.dispose]();
    graph[Symbol.dispose]();
    await assert.rejects(graph.launch(), DisposedError);
    // After all that the device works.
    enqueue();
    await device.synchronize();
  });

  it("keeps devices apart", async () => {
    await withDevice(1, async (foreign) => {
      const stream = anyStream();
      const theirs = foreign.createEvent("theirs");
      assert.throws(() => stream.record(theirs), InvalidArgumentError);
      assert.throws(() => device.write(room(foreign, 1), Int32Array.of(1)), InvalidArgumentError);
      const work = new Averages();
      assert.throws(
        () => work.enqueue(stream, work.zero, work.zero, room(foreign, WIDTH)),
        /output is not a buffer of this device/,
      );
      const theirStream = foreign.createStream({ group: 0, priority: 0 });
      assert.throws(() => device.capture(theirStream, () => {}), InvalidArgumentError);
    });
  });
});
