/**
 * `project`: against float64 over random shapes and every option, the accuracy of
 * its activations one by one, and the promise that a result has the same bits
 * whatever is computed beside it.
 */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import {
  ACTIVATION_CODE,
  DTYPE_CODE,
  type Flag,
  PART_CODE,
  type WeightDType,
} from "../../../src/execution/cpu/kernels.ts";
import type { Activation } from "../../../src/execution/operators.ts";
import type { Random } from "../../../src/workload/random.ts";
import { between, chance, normal, pick, randomFor } from "../../support/seed.ts";
import { tensorOf, valuesOf } from "../../support/tensors.ts";
import { activationSlope, referenceActivation } from "./float64-activations.ts";
import { DTYPES, GROUP_ROWS, KernelBench, VARIANTS } from "./kernel-bench.ts";

const KINDS = Object.keys(ACTIVATION_CODE) as Activation["kind"][];
const ALPHA = 1.702;
const LIMIT = 1.5;

/** One product with all its arrays in a bench's memory. */
interface Product {
  readonly dtype: WeightDType;
  readonly inputs: number;
  readonly outputs: number;
  readonly gated: Flag;
  readonly activation: Activation["kind"];
  readonly rowCount: number;
  /** Slot of each row, or none. */
  readonly slots: Int32Array | undefined;
  readonly divisor: number;
  readonly x: Float32Array;
  readonly value: Float32Array;
  readonly gate: Float32Array;
  readonly bias: Float32Array | undefined;
  readonly scale: Float32Array | undefined;
  readonly inputStride: number;
  readonly outputStride: number;
}

function randomProduct(random: Random, fixed: Partial<Product> = {}): Product {
  const inputs = pick(random, [between(random, 1, 9), between(random, 1, 300), 256, 512, 700]);
  const outputs = pick(random, [between(random, 1, 9), between(random, 1, 70), 33]);
  const rowCount = pick(random, [between(random, 1, 8), between(random, 1, 30)]);
  const base = { inputs, outputs, rowCount, dtype: pick(random, DTYPES), ...fixed };
  const gated = fixed.gated ?? (chance(random, 0.5) ? 1 : 0);
  const ungatedKinds = KINDS.filter((kind) => kind !== "swiglu-clamped");
  const divisor = fixed.divisor ?? pick(random, [0, 1, 2, 5]);
  const sourceRows = Math.max(base.rowCount, 20);
  const slotCount = sourceRows * Math.max(divisor, 1);
  const slots = chance(random, 0.5)
    ? Int32Array.from({ length: base.rowCount }, () => random.integer(slotCount))
    : undefined;
  const weights = () => {
    const values = normal(random, base.outputs * base.inputs, 1 / Math.sqrt(base.inputs));
    return valuesOf(tensorOf(values, [values.length], base.dtype));
  };
  const inputStride = base.inputs + random.integer(4);
  return {
    activation: pick(random, gated ? KINDS : ungatedKinds),
    slots,
    divisor,
    x: normal(random, sourceRows * inputStride),
    value: weights(),
    gate: weights(),
    bias: chance(random, 0.5) ? normal(random, (1 + gated) * base.outputs) : undefined,
    scale: chance(random, 0.3) ? normal(random, slotCount) : undefined,
    inputStride,
    outputStride: base.outputs + random.integer(4),
    ...base,
    gated,
  };
}

/** Puts a product on a bench; the result runs parts of it and reads the output. */
function place(bench: KernelBench, p: Product) {
  const { kernels } = bench;
  const code = DTYPE_CODE[p.dtype];
  const bytes = kernels.packedBytes(code, p.outputs, p.inputs, p.gated);
  const weights = bench.clear(bench.allocate(bytes, 16), bytes);
  const pack = (part: number, values: Float32Array) => {
    const src = bench.put(tensorOf(values, [values.length], p.dtype).data);
    const all = [p.outputs, src, p.inputs, 1] as const;
    kernels.pack(weights, code, p.outputs, p.inputs, p.gated, part, 0, ...all);
  };
  pack(PART_CODE.value, p.value);
  if (p.gated) pack(PART_CODE.gate, p.gate);
  // Poison between the rows: a read beyond a row would show.
  const x = p.x.map((v, i) => (i % p.inputStride < p.inputs ? v : Number.NaN));
  const input = bench.put(x);
  const rowIndex = p.slots ? bench.put(p.slots) : 0;
  const bias = p.bias ? bench.put(p.bias) : 0;
  const scale = p.scale ? bench.put(p.scale) : 0;
  const outputLength = p.rowCount * p.outputStride;
  const output = bench.allocate(4 * outputLength, 4);
  const scratch = bench.allocate(kernels.scratchBytes(), 16);
  return {
    panels: Math.ceil(p.outputs / kernels.panelOutputs(p.gated)),
    read: () => bench.words(output, outputLength),
    run(firstRow: number, rowCount: number, firstPanel: number, panelCount: number): void {
      // Without slots a row is found by its position, so the input moves with the tile.
      const moved = p.slots && p.divisor ? 0 : 4 * firstRow * p.inputStride;
      kernels.project(
        ...([input + moved, p.inputStride, rowIndex && rowIndex + 4 * firstRow] as const),
        ...([p.divisor, rowCount, weights, code, p.inputs, p.outputs, p.gated] as const),
        ...([firstPanel, panelCount, bias, scale && scale + (p.slots ? 0 : 4 * firstRow)] as const),
        ...([ACTIVATION_CODE[p.activation], ALPHA, LIMIT] as const),
        ...([output + 4 * firstRow * p.outputStride, p.outputStride, scratch] as const),
      );
    },
  };
}

/** Runs all of a product in tiles of at most `tileRows` rows; the bits of the output. */
function compute(bench: KernelBench, p: Product, tileRows = bench.kernels.maxTileRows()) {
  const placed = place(bench, p);
  for (let r = 0; r < p.rowCount; r += tileRows) {
    placed.run(r, Math.min(tileRows, p.rowCount - r), 0, placed.panels);
  }
  bench.checkGuards();
  return placed.read();
}

/** Fails where the output differs from float64 by more than float32 rounding explains. */
function checkAgainstFloat64(p: Product, bits: Uint32Array): void {
  const actual = new Float32Array(bits.buffer);
  for (let r = 0; r < p.rowCount; r++) {
    const slot = p.slots ? (p.slots[r] as number) : r;
    const row = p.slots && p.divisor ? Math.floor(slot / p.divisor) : r;
    const factor = p.scale ? (p.scale[slot] as number) : 1;
    for (let o = 0; o < p.outputStride; o++) {
      const at = r * p.outputStride + o;
      if (o >= p.outputs) {
        assert.equal(bits[at], KernelBench.POISON, `wrote beyond the outputs of row ${r}`);
        continue;
      }
      const dot = (matrix: Float32Array, biasAt: number) => {
        let sum = 0;
        let size = 0;
        for (let k = 0; k < p.inputs; k++) {
          const x = p.x[row * p.inputStride + k] as number;
          const product = x * (matrix[o * p.inputs + k] as number);
          sum += product;
          size += Math.abs(product);
        }
        const bias = p.bias ? (p.bias[biasAt] as number) : 0;
        return { sum: factor * sum + bias, size: Math.abs(factor) * size + Math.abs(bias) };
      };
      const u = dot(p.value, o);
      const g = p.gated ? dot(p.gate, p.outputs + o) : undefined;
      const settings = { kind: p.activation, alpha: ALPHA, limit: LIMIT };
      const expected = referenceActivation(settings, u.sum, g?.sum);
      // A block of 256 loses at most 256 roundings of its size; in practice a small part of that.
      const roundings = 2 ** -24 * 24;
      const slope = activationSlope(settings, u.sum, g?.sum);
      const bound =
        roundings * (slope.value * u.size + slope.gate * (g?.size ?? 0)) +
        2 ** -20 * Math.abs(expected);
      const error = Math.abs((actual[at] as number) - expected);
      assert.ok(
        error <= bound,
        `row ${r}, output ${o}: ${actual[at]}, expected ${expected} within ${bound}; ${describeProduct(p)}`,
      );
    }
  }
}

function describeProduct(p: Product): string {
  const shown = Object.entries(p).map(([key, v]) => [key, ArrayBuffer.isView(v) ? "yes" : v]);
  return JSON.stringify(Object.fromEntries(shown));
}

/** The builds, and the relaxed one with each size of row groups that the loader may choose (the plain one has but one). */
const SETTINGS = VARIANTS.flatMap((variant) =>
  (variant === "simd" ? [4] : GROUP_ROWS).map((groupRows) => ({ variant, groupRows })),
);

describe("project", () => {
  for (const { variant, groupRows } of SETTINGS) {
    const bench = () => new KernelBench(variant, { groupRows });

    it(`equals float64 to rounding (${variant}, groups of ${groupRows})`, () => {
      const random = randomFor("project");
      for (let i = 0; i < 80; i++) {
        const p = randomProduct(random);
        checkAgainstFloat64(p, compute(bench(), p));
      }
    });

    it(`gives a row the same bits in any company (${variant}, groups of ${groupRows})`, () => {
      const random = randomFor("bits");
      for (const dtype of DTYPES) {
        for (const gated of [0, 1] as const) {
          // Two strips of panels and a few outputs more, three blocks of inputs, two tiles of rows.
          const shape = { dtype, gated, inputs: 600, outputs: gated ? 135 : 270, rowCount: 200 };
          const p = randomProduct(random, { ...shape, divisor: 1 });
          const whole = compute(bench(), p);
          for (const rows of [1, 2, 3, 4, 5, 6, 7, 11]) {
            const some = { ...p, rowCount: between(random, rows, 23) };
            const bits = compute(bench(), some, rows);
            const expected = whole.subarray(0, bits.length);
            const at = bits.findIndex((word, i) => word !== expected[i]);
            const where = `row ${Math.floor(at / p.outputStride)}, output ${at % p.outputStride}`;
            assert.equal(at, -1, `tiles of ${rows} differ at ${where} ${describeProduct(p)}`);
          }
          const b = bench();
          const placed = place(b, { ...p, rowCount: 5 });
          for (let panel = 0; panel < placed.panels; ) {
            const count = Math.min(between(random, 1, 9), placed.panels - panel);
            placed.run(0, 5, panel, count);
            panel += count;
          }
          b.checkGuards();
          const bits = placed.read();
          assert.ok(
            sameBits(bits, whole.subarray(0, bits.length)),
            "a split of the panels differs",
          );
        }
      }
    });
  }

  it("has the same bits for groups of 4 and of 6 rows", () => {
    const random = randomFor("groups");
    for (const variant of VARIANTS) {
      for (let i = 0; i < 10; i++) {
        const p = randomProduct(random);
        const [a, b] = GROUP_ROWS.map((groupRows) =>
          compute(new KernelBench(variant, { groupRows }), p),
        ) as [Uint32Array, Uint32Array];
        assert.ok(sameBits(a, b), describeProduct(p));
      }
    }
  });

  it("takes infinite and NaN weights, and they change no other output", () => {
    const random = randomFor("specials");
    for (const variant of VARIANTS) {
      for (const dtype of DTYPES) {
        for (let i = 0; i < 6; i++) {
          const gated: Flag = chance(random, 0.5) ? 1 : 0;
          const fixed = { dtype, gated, outputs: 20, activation: "none" } as const;
          const p = randomProduct(random, { ...fixed, scale: undefined });
          const special = pick(random, [Infinity, -Infinity, Number.NaN]);
          const value = p.value.slice();
          const at = random.integer(value.length);
          value[at] = special;
          const usual = compute(new KernelBench(variant), p);
          const changed = compute(new KernelBench(variant), { ...p, value });
          const output = Math.floor(at / p.inputs);
          for (const [j, bits] of changed.entries()) {
            const isAffected = j % p.outputStride === output;
            if (isAffected) assert.ok((bits & 0x7f800000) === 0x7f800000, describeProduct(p));
            else assert.equal(bits, usual[j], describeProduct(p));
          }
        }
      }
    }
  });

  it("works at addresses beyond 2 GiB", () => {
    const random = randomFor("high addresses");
    for (const variant of VARIANTS) {
      const bytes = 4 * 2 ** 20;
      const high = new KernelBench(variant, { base: 2 ** 31 - 2 ** 20, bytes });
      const p = randomProduct(random, { inputs: 300, outputs: 600, rowCount: 20 });
      const bits = compute(high, p);
      assert.ok(high.used > 2 ** 31, `used up to ${high.used} only`);
      assert.ok(sameBits(bits, compute(new KernelBench(variant), p)));
    }
  });
});

function sameBits(a: Uint32Array, b: Uint32Array): boolean {
  return a.length === b.length && a.every((word, i) => word === b[i]);
}

describe("activations of project", () => {
  /** activation(x), by a product of one input with the weight 1. */
  const apply = (kind: Activation["kind"], x: Float32Array, variant: (typeof VARIANTS)[number]) => {
    const bench = new KernelBench(variant, { bytes: 2 ** 23 });
    const one = Float32Array.of(1);
    const p: Product = {
      dtype: "float32",
      inputs: 1,
      outputs: 1,
      gated: 0,
      activation: kind,
      divisor: 0,
      rowCount: x.length,
      slots: undefined,
      bias: undefined,
      scale: undefined,
      x,
      value: one,
      gate: one,
      inputStride: 1,
      outputStride: 1,
    };
    return new Float32Array(compute(bench, p).buffer);
  };

  /** Most units in the last place of the exact result by which a kind may be off, up to where it has them all. */
  const ULPS: Partial<Record<Activation["kind"], number>> = {
    none: 0,
    relu: 0,
    silu: 4,
    sigmoid: 3,
    gelu: 10,
  };

  for (const variant of VARIANTS) {
    for (const [kind, most] of Object.entries(ULPS) as [Activation["kind"], number][]) {
      it(`${kind} is within ${most} ulp (${variant})`, () => {
        const grid = Float32Array.from({ length: 60_001 }, (_, i) => (i - 30_000) / 2000);
        const random = randomFor(kind);
        const wide = Float32Array.from(
          { length: 20_000 },
          () => (chance(random, 0.5) ? -1 : 1) * 2 ** (-30 + 36.4 * random.uniform()),
        );
        for (const x of [grid, wide]) {
          const y = apply(kind, x, variant);
          for (const [i, xi] of x.entries()) {
            const expected = referenceActivation({ kind, alpha: 0, limit: 0 }, xi);
            const ulp = Math.max(2 ** (Math.floor(Math.log2(Math.abs(expected))) - 23), 2 ** -149);
            const error = Math.abs((y[i] as number) - expected);
            // Where a factor of x is subnormal, it is known to 2^-149 only.
            const bound = (most + 0.5) * ulp + Math.abs(xi) * 2 ** -149;
            assert.ok(
              error <= bound,
              `${kind}(${xi}) is ${y[i]}, not ${expected}: off by ${error}`,
            );
          }
        }
      });
    }

    it(`gelu-tanh is within 1e-6 of its size and 1e-30 (${variant})`, () => {
      const x = Float32Array.from({ length: 40_001 }, (_, i) => (i - 20_000) / 2000);
      const y = apply("gelu-tanh", x, variant);
      for (const [i, xi] of x.entries()) {
        const expected = referenceActivation({ kind: "gelu-tanh", alpha: 0, limit: 0 }, xi);
        // Rounding the argument of tanh costs the tail an error that grows with the argument.
        const bound = 1e-6 * (1 + Math.abs(xi) ** 3) * Math.abs(expected) + 1e-30;
        assert.ok(Math.abs((y[i] as number) - expected) <= bound, `gelu-tanh(${xi}) = ${y[i]}`);
      }
    });

    it(`keeps zeros, infinities and NaN (${variant})`, () => {
      const x = Float32Array.of(0, -0, Infinity, Number.NaN, 3e38, -3e38);
      const expected: Partial<Record<Activation["kind"], number[]>> = {
        none: [0, -0, Infinity, Number.NaN, 3e38, -3e38],
        relu: [0, -0, Infinity, Number.NaN, 3e38, 0],
        silu: [0, -0, Infinity, Number.NaN, 3e38, -0],
        gelu: [0, -0, Infinity, Number.NaN, 3e38, -0],
        "gelu-tanh": [0, -0, Infinity, Number.NaN, 3e38, -0],
        sigmoid: [0.5, 0.5, 1, Number.NaN, 1, 0],
      };
      for (const [kind, values] of Object.entries(expected) as [Activation["kind"], number[]][]) {
        // The product of one input starts from +0, which swallows the sign of -0.
        const actual = [...apply(kind, x, variant)].map((v) => (v === 0 ? 0 : v));
        const rounded = [...Float32Array.from(values)].map((v) => (v === 0 ? 0 : v));
        assert.deepEqual(actual, rounded, kind);
      }
    });
  }
});
