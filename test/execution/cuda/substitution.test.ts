/** Launches of a graph with other buffers in the place of its own, on the fake driver. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { DisposedError, InvalidArgumentError } from "../../../src/errors.ts";
import type { DeviceBuffer, Graph, Substitute } from "../../../src/execution/device.ts";
import {
  type Average,
  enqueue,
  type FakeDevice,
  OPERAND_BYTES,
  operand,
  readValue,
  withFake,
} from "./harness.ts";

interface Parts {
  readonly input: DeviceBuffer;
  readonly output: DeviceBuffer;
  readonly graph: Graph;
}

/** A graph of two kernels, of which the second one makes out = between / 2 + input / 2 + 1 of what the first one made of input and input. */
function twoKernels({ device }: FakeDevice, special: Partial<Average> = {}): Parts {
  const stream = device.createStream({ group: 0, priority: 0 });
  const input = operand(device, 0, "input");
  const between = operand(device, undefined, "between");
  const output = operand(device, undefined, "output");
  const graph = device.capture(stream, () => {
    enqueue(stream, { a: input, b: input, output: between });
    enqueue(stream, { a: between, b: input, output, ...special });
  });
  return { input, output, graph };
}

/** What the graph makes of a value. */
const made = (value: number) => (value + 1) / 2 + value / 2 + 1;

function standIns(parts: Parts, input: DeviceBuffer, output: DeviceBuffer): readonly Substitute[] {
  return [
    { buffer: parts.input, by: input, byteLength: OPERAND_BYTES, access: "read" },
    { buffer: parts.output, by: output, byteLength: OPERAND_BYTES, access: "write" },
  ];
}

describe("substitutes of a launch", () => {
  it("are read and written by that launch alone, and the graph's own buffers by others", async () => {
    await withFake(async (fake) => {
      const { device, driver } = fake;
      const parts = twoKernels(fake);
      await parts.graph.launch();
      for (const value of [4, 10]) {
        const [input, output] = [operand(device, value), operand(device, -1)];
        await parts.graph.launch(standIns(parts, input, output));
        assert.equal(await readValue(device, output), made(value));
        assert.equal(await readValue(device, parts.output), made(0));
      }
      device.write(parts.input, new Float32Array(4).fill(6));
      await parts.graph.launch();
      assert.equal(await readValue(device, parts.output), made(6));
      assert.equal(driver.count("copyOnDevice"), 0);
    });
  });

  it("change nodes only where they are others than those of the launch before", async () => {
    await withFake(async (fake) => {
      const { device, driver } = fake;
      const parts = twoKernels(fake);
      const [input, output, other] = [operand(device, 2), operand(device), operand(device)];
      const calls: number[] = [];
      for (const to of [output, output, other, other]) {
        await parts.graph.launch(standIns(parts, input, to));
        calls.push(driver.count("setNodeLaunch"));
      }
      // Both kernels read the input, the second one writes the output.
      assert.deepEqual(calls, [2, 2, 3, 3]);
      assert.equal(await readValue(device, other), made(2));
    });
  });

  it("are those of each launch where several wait for their turn", async () => {
    await withFake(async (fake) => {
      const { device } = fake;
      const parts = twoKernels(fake);
      const values = [1, 5, 9, 13];
      const outputs = values.map(() => operand(device));
      const launches = values.map((value, i) =>
        parts.graph.launch(standIns(parts, operand(device, value), outputs[i] as DeviceBuffer)),
      );
      launches.push(parts.graph.launch());
      await Promise.all(launches);
      for (const [i, value] of values.entries()) {
        assert.equal(await readValue(device, outputs[i] as DeviceBuffer), made(value));
      }
      assert.equal(await readValue(device, parts.output), made(0));
    });
  });

  it("go along with budgets that change", async () => {
    await withFake(async (fake) => {
      const { device, driver } = fake;
      const parts = twoKernels(fake);
      const output = operand(device);
      device.setComputeBudgets({ realisation: "shared", units: [8] });
      await parts.graph.launch(standIns(parts, operand(device, 3), output));
      assert.equal(await readValue(device, output), made(3));
      assert.deepEqual(
        driver.launches.map(({ grid }) => grid.x),
        [16, 16],
      );
    });
  });

  it("are copied where something has the address that cannot be changed", async () => {
    await withFake(async (fake) => {
      const { device, driver } = fake;
      const copy = operand(device, undefined, "copy");
      // The driver copies from the output.
      const parts = twoKernels(fake, { beside: copy });
      const [input, output] = [operand(device, 7), operand(device, -1)];
      await parts.graph.launch(standIns(parts, input, output));
      assert.equal(await readValue(device, output), made(7));
      assert.equal(await readValue(device, parts.output), made(7));
      assert.equal(await readValue(device, copy), made(7));
      assert.equal(driver.count("setNodeLaunch"), 2);
    });
  });

  it("are copied where the graph has partitions, whose nodes the driver does not change", async () => {
    await withFake(async (fake) => {
      const { device, driver } = fake;
      device.setComputeBudgets({ realisation: "partitioned", units: [8, 16] });
      const parts = twoKernels(fake);
      const [input, output] = [operand(device, 7), operand(device, -1)];
      await parts.graph.launch(standIns(parts, input, output));
      assert.equal(await readValue(device, output), made(7));
      assert.equal(driver.count("setNodeLaunch"), 0);
      assert.equal(driver.count("copyOnDevice"), 2);
      await parts.graph.launch(standIns(parts, operand(device, 3), operand(device)));
      device.write(parts.input, new Float32Array(4).fill(1));
      await parts.graph.launch();
      assert.equal(await readValue(device, parts.output), made(1));
    });
  });

  it("are tried again after the driver refused them", async () => {
    await withFake(async (fake) => {
      const { device, driver } = fake;
      const parts = twoKernels(fake);
      const [input, output] = [operand(device, 2), operand(device)];
      driver.fail("setNodeLaunch", { skip: 1, result: 801 });
      await assert.rejects(parts.graph.launch(standIns(parts, input, output)), /setNodeLaunch/);
      await parts.graph.launch(standIns(parts, input, output));
      assert.equal(await readValue(device, output), made(2));
      await parts.graph.launch();
      assert.equal(await readValue(device, parts.output), made(0));
    });
  });

  it("may be buffers of the graph's own, which have substitutes in other launches", async () => {
    await withFake(async ({ device }) => {
      const stream = device.createStream({ group: 0, priority: 0 });
      const [a, b, c] = [operand(device, 2), operand(device, 20), operand(device, 50)];
      const [between, output] = [operand(device), operand(device)];
      const graph = device.capture(stream, () => {
        enqueue(stream, { a, b: a, output: between });
        enqueue(stream, { a: between, b, output });
      });
      const run = async (...substitutes: [DeviceBuffer, DeviceBuffer][]) => {
        const each = { byteLength: OPERAND_BYTES, access: "read" } as const;
        await graph.launch(substitutes.map(([buffer, by]) => ({ buffer, by, ...each })));
        return readValue(device, output);
      };
      const of = (first: number, second: number) => (first + 1) / 2 + second / 2 + 1;
      assert.equal(await run([a, b]), of(20, 20));
      assert.equal(await run([b, c]), of(2, 50));
      assert.equal(await run([a, b], [b, a]), of(20, 2));
      assert.equal(await run(), of(2, 20));
    });
  });

  it("are those that were given when the launch was asked for", async () => {
    await withFake(async (fake) => {
      const { device, driver } = fake;
      const parts = twoKernels(fake);
      const [output, another] = [operand(device, -1), operand(device, -1)];
      driver.stalled = true;
      const first = parts.graph.launch();
      const substitutes = [...standIns(parts, operand(device, 4), output)] as {
        by: DeviceBuffer;
      }[];
      const second = parts.graph.launch(substitutes as unknown as Substitute[]);
      (substitutes[1] as { by: DeviceBuffer }).by = another;
      driver.stalled = false;
      await Promise.all([first, second]);
      assert.equal(await readValue(device, output), made(4));
      assert.equal(await readValue(device, another), -1);
    });
  });

  it("may be closed once the launch is under way, and are not handed out before it is over", async () => {
    await withFake(async (fake) => {
      const { device, driver } = fake;
      const parts = twoKernels(fake);
      const [input, output] = [operand(device, 8), operand(device)];
      driver.stalled = true;
      const launch = parts.graph.launch(standIns(parts, input, output));
      input[Symbol.dispose]();
      const later = operand(device, 100);
      driver.stalled = false;
      await launch;
      assert.equal(await readValue(device, output), made(8));
      assert.equal(await readValue(device, later), 100);
    });
  });

  it("are refused before anything runs", async () => {
    await withFake(async (fake) => {
      const { device, driver } = fake;
      const parts = twoKernels(fake);
      const by = operand(device);
      const closed = operand(device, undefined, "closed");
      closed[Symbol.dispose]();
      const unused = operand(device, undefined, "unused");
      const mirrored = device.allocate(16, "counts", { mirrored: true });
      const { input, output } = parts;
      const read = { buffer: input, by, byteLength: OPERAND_BYTES, access: "read" };
      const write = { ...read, buffer: output, access: "write" };
      await withFake(async ({ device: other }) => {
        const foreign = operand(other);
        const cases: readonly [unknown, RegExp, unknown?][] = [
          [read, /substitutes is .*must be an array/],
          [[null], /a substitute is null/],
          [[{ ...read, by: foreign }], /not both of the graph's device/],
          [[{ ...read, buffer: foreign }], /not both of the graph's device/],
          [[{ ...read, by: closed }], /Buffer "closed"/, DisposedError],
          [
            [{ ...read, byteLength: OPERAND_BYTES + 1 }],
            /"input" has 16 bytes, so there are no 17/,
          ],
          [[{ ...read, byteLength: undefined }], /there are no undefined/],
          [[{ ...read, access: "both" }], /access is "both"; it must be "read" or/],
          [[{ ...read, buffer: unused }], /"unused" is not one that the graph uses/],
          [[read, read], /"input" has two substitutes/],
          [[read, write], /would be written in the place of one .* Take two buffers/],
          [[{ ...write, by: mirrored }], /"counts" is mirrored/],
        ];
        for (const [substitutes, pattern, type = InvalidArgumentError] of cases) {
          await assert.rejects(
            parts.graph.launch(substitutes as Substitute[]),
            (error) => error instanceof (type as typeof Error) && pattern.test(error.message),
            String(pattern),
          );
        }
      });
      assert.equal(driver.launches.length, 0);
      await parts.graph.launch([{ ...read, by: mirrored }] as Substitute[]);
      assert.equal(await readValue(device, output), made(0));
    });
  });
});
