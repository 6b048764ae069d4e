/** That the emulated GPU notices what it is there to notice. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Context } from "../../../../src/execution/cuda/driver/context.ts";
import { float16ToNumber } from "../../../../src/tensor.ts";
import { between, normal, randomFor } from "../../../support/seed.ts";
import { EmulatedDriver, shippedManifest } from "./driver.ts";
import { KERNELS } from "./kernels/index.ts";
import { loadRows, storeStretch } from "./kernels/panels.ts";
import { Pointer, WatchedMemory } from "./memory.ts";
import { brainBits, halfBits, keyed, keyOf, popcount } from "./numbers.ts";

/** A driver with two streams and blocks of 64 bytes in use. */
function open() {
  const driver = new EmulatedDriver();
  const context = new Context(driver, 0);
  const [one, other] = [driver.createStream(0), driver.createStream(0)];
  const block = () => {
    const address = driver.allocate(512);
    driver.fillBytes(address, 0, 64, one);
    return address;
  };
  const [a, b] = [block(), block()];
  driver.synchronizeStream(one);
  const event = driver.createEvent(false);
  const order = (from: bigint, to: bigint) => {
    driver.recordEvent(event, from);
    driver.waitEvent(to, event);
  };
  order(one, other);
  return { driver, context, one, other, a, b, order };
}

function fails(driver: EmulatedDriver, stream: bigint, pattern: RegExp): void {
  assert.throws(() => driver.synchronizeStream(stream));
  assert.match(driver.violations.join("\n"), pattern);
}

describe("watched memory", () => {
  it("ends where the last owner's bytes end, and holds only what was written", () => {
    const { driver, one, a, b } = open();
    driver.copyOnDevice(a, b, 64, one);
    driver.synchronizeStream(one);
    assert.deepEqual(driver.violations, []);
    driver.copyOnDevice(a, b, 68, one);
    fails(driver, one, /read of 68 bytes at byte 0 .* beyond its 64 bytes/);
  });

  it("notices what is read before it is written", () => {
    const { driver, one, a } = open();
    const fresh = driver.allocate(512);
    driver.copyOnDevice(a, fresh, 4, one);
    fails(driver, one, /never written/);
  });

  it("notices memory that was freed, and addresses between blocks", () => {
    for (const address of [0n, 12n]) {
      const { driver, one, a, b } = open();
      if (address === 0n) driver.free(b);
      driver.copyOnDevice(a, address === 0n ? b : address, 4, one);
      fails(driver, one, /no memory at/);
    }
  });

  it("wants addresses that fit the element", () => {
    const { driver, a } = open();
    const odd = new Pointer(driver.memory, Number(a) + 2, "fp32");
    assert.throws(() => odd.load(0, 1), /not aligned/);
    assert.throws(() => new Pointer(driver.memory, Number(a), "i32").load(0, 1), /as floats/);
  });
});

describe("tensor maps", () => {
  const good = { element: "bfloat16", swizzle: 3, l2Promotion: 2 } as const;

  it("must be ones that the driver takes, of memory that there is", () => {
    const { driver, a } = open();
    const target = driver.allocatePinned(128).address;
    const encode = (shape: number[], box: number[], changes: object = {}) =>
      driver.encodeTensorMap(target, { ...good, address: a, shape, box, ...changes });
    encode([4, 64], [256, 64]);
    encode([1, 2, 2, 64], [1, 4, 64, 64]);
    encode([4, 32], [4, 32], { element: "float32" });
    const refused = (shape: number[], box: number[]) =>
      assert.throws(() => encode(shape, box), /There is no tensor map of/);
    refused([4, 64], [1, 1, 1, 64]);
    refused([1, 1, 1, 1, 4, 64], [1, 1, 1, 1, 4, 64]);
    refused([0, 64], [4, 64]);
    refused([4, 64], [257, 64]);
    // Rows that are no multiple of 16 bytes, of the memory and of the box.
    refused([2, 126], [2, 64]);
    refused([4, 64], [4, 4]);
    // Swizzle 3 is of 128 bytes.
    refused([2, 128], [2, 128]);
    encode([2, 128], [2, 128], { swizzle: 0 });
    assert.throws(() => encode([5, 64], [4, 64]), /reaches past the memory/);
    assert.throws(() => encode([2, 64], [2, 64], { address: a + 8n }), /not aligned/);
  });
});

describe("the race check", () => {
  it("finds two writes, and a write beside a read, whatever order they ran in", () => {
    for (const round of [0, 1, 2, 3]) {
      const { driver, one, other, a, b } = open();
      driver.fillWords(a, 1, 4, one);
      if (round % 2 === 0) driver.fillWords(a, 2, 4, other);
      else driver.copyOnDevice(b, a, 8, other);
      assert.throws(() => {
        driver.synchronizeStream(one);
        driver.synchronizeStream(other);
      });
      assert.match(driver.violations.join(), /Race: .* and nothing orders them/);
    }
  });

  it("is content with an event between them, with reads of both, and with other bytes", () => {
    const { driver, one, other, a, b, order } = open();
    driver.fillWords(a, 1, 4, one);
    order(one, other);
    driver.copyOnDevice(b, a, 8, other);
    driver.fillWords(b + 32n, 1, 4, one);
    order(other, one);
    driver.fillWords(b, 1, 2, one);
    driver.synchronizeStream(one);
    driver.synchronizeStream(other);
    assert.deepEqual(driver.violations, []);
  });

  it("holds for work that the host has waited for", () => {
    const { driver, one, other, a } = open();
    driver.fillWords(a, 1, 4, one);
    const done = driver.createEvent(false);
    driver.recordEvent(done, one);
    while (!driver.eventDone(done));
    driver.fillWords(a, 2, 4, other);
    driver.synchronizeStream(other);
    assert.deepEqual(driver.violations, []);
  });

  it("finds branches of a graph that meet, and knows that launches follow each other", () => {
    for (const ordered of [true, false]) {
      const { driver, one, other, a, b, order } = open();
      driver.beginCapture(one);
      driver.fillWords(b, 1, 1, one);
      order(one, other);
      driver.fillWords(a, 1, 4, one);
      if (ordered) order(one, other);
      driver.fillWords(a, 2, 4, other);
      order(other, one);
      const exec = driver.instantiateGraph(driver.endCapture(one));
      driver.launchGraph(exec, one);
      driver.launchGraph(exec, one);
      if (ordered) {
        driver.synchronizeStream(one);
        assert.deepEqual(driver.violations, []);
      } else {
        fails(driver, one, /Race: fill of words and fill of words/);
      }
    }
  });
});

describe("the emulated kernels", () => {
  it("are all that the bundle has", () => {
    const names = new Set(shippedManifest().kernels.map(({ entry }) => entry));
    assert.deepEqual([...names].sort(), Object.keys(KERNELS).sort());
  });

  it("find rows of weights in their panels", () => {
    const memory = new WatchedMemory();
    const [n, k] = [64, 192];
    // Two matrices whose elements are their own numbers, row by row.
    const weights = Float32Array.from({ length: 2 * n * k }, (_, i) => i);
    const bytes = new ArrayBuffer(weights.byteLength);
    memory.add(4096n, bytes, false);
    const w = new Pointer(memory, 4096, "fp32");
    for (let row = 0; row < 2 * n; row++) {
      const [matrix, own] = [Math.floor(row / n), row % n];
      // In stretches that begin and end within panels.
      for (let column = 0; column < k; column += 50) {
        const values = weights.subarray(row * k + column, row * k + Math.min(column + 50, k));
        storeStretch(w, matrix * n * k + own * 64, 64 * n, column, values);
      }
    }
    const at = (matrix: number, panel: number, row: number, column: number) =>
      new Float32Array(bytes)[((matrix * 3 + panel) * n + row) * 64 + column];
    assert.equal(at(0, 0, 5, 7), 5 * k + 7);
    assert.equal(at(0, 2, 63, 63), 63 * k + 191);
    assert.equal(at(1, 1, 5, 7), (64 + 5) * k + 64 + 7);
    const rows = loadRows(w, { matrix: 1, n, k }, 5, 2);
    assert.deepEqual(rows, [
      weights.slice((64 + 5) * k, (64 + 6) * k),
      weights.slice((64 + 6) * k, (64 + 7) * k),
    ]);
  });

  it("round to nearest, ties to even", () => {
    // Halfway between two neighbours, the even one.
    assert.equal(brainBits(1 + 2 ** -8), 0x3f80);
    assert.equal(brainBits(1 + 3 * 2 ** -8), 0x3f82);
    assert.equal(halfBits(1 + 2 ** -11), 0x3c00);
    assert.equal(halfBits(1 + 3 * 2 ** -11), 0x3c02);
    assert.equal(halfBits(65519), 0x7bff);
    assert.equal(halfBits(65520), 0x7c00);
    assert.equal(halfBits(2 ** -25), 0);
    assert.equal(halfBits(3 * 2 ** -25), 2);
    for (let bits = 0; bits < 0x7c00; bits++) assert.equal(halfBits(float16ToNumber(bits)), bits);
  });

  it("order keys as floats are ordered, and count bits", () => {
    const random = randomFor("emulated keys");
    const values = [...normal(random, 200, 100), 0, -0, Infinity, -Infinity];
    for (const a of values) {
      assert.equal(keyed(keyOf(a)), a + 0);
      for (const b of values) assert.equal(Math.sign(keyOf(a) - keyOf(b)), Math.sign(sign(a, b)));
    }
    assert.ok(keyOf(Number.NaN) > keyOf(Infinity));
    for (let round = 0; round < 200; round++) {
      const word = between(random, 0, 2 ** 32 - 1) | 0;
      const ones = (word >>> 0).toString(2).replaceAll("0", "").length;
      assert.equal(popcount(word), ones);
    }
  });
});

function sign(a: number, b: number): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
