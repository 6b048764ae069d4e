/**
 * The CPU kernels other than `project`: the loader, packing, conversion, filling,
 * combining, summing. Every test runs on every build that this runtime takes, on
 * memory with guards around each array.
 */

import assert from "node:assert/strict";
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { describe, it } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";
import {
  compileKernels,
  DTYPE_CODE,
  type Flag,
  PART_CODE,
  type WeightDType,
} from "../../../src/execution/cpu/kernels.ts";
import { between, chance, normal, pick, randomFor } from "../../support/seed.ts";
import { DTYPES, decode, KernelBench, VARIANTS } from "./kernel-bench.ts";

const HALF_DTYPES = ["bfloat16", "float16"] as const;

describe("compileKernels", () => {
  it("takes the relaxed build where the runtime has it, the plain one elsewhere", async () => {
    const { module, variant } = await compileKernels();
    assert.ok(module instanceof WebAssembly.Module);
    assert.equal(variant, VARIANTS.includes("relaxed") ? "relaxed-simd" : "simd");
  });

  it("says what to do when the kernels are missing or cannot run", async () => {
    const folder = mkdtempSync(path.join(os.tmpdir(), "nexus-kernels-"));
    try {
      const here = fileURLToPath(new URL("../../../src/", import.meta.url));
      const target = path.join(folder, "execution/cpu");
      mkdirSync(target, { recursive: true });
      writeFileSync(path.join(folder, "package.json"), '{"type":"module"}');
      for (const file of ["errors.js", "errors/wording.js", "execution/cpu/kernels.js"]) {
        cpSync(path.join(here, file), path.join(folder, file));
      }
      const copy: typeof import("../../../src/execution/cpu/kernels.ts") = await import(
        pathToFileURL(path.join(target, "kernels.js")).href
      );
      const expected = { code: "ERR_DEVICE_UNAVAILABLE" };
      await assert.rejects(copy.compileKernels(), {
        ...expected,
        message: /kernels\.relaxed\.wasm.*npm run build:kernels/,
      });
      for (const name of ["relaxed", "simd"]) {
        writeFileSync(path.join(target, `kernels.${name}.wasm`), "not WebAssembly");
      }
      await assert.rejects(copy.compileKernels(), {
        ...expected,
        message: /runs no WebAssembly SIMD/,
      });
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});

for (const variant of VARIANTS) {
  describe(`kernels, ${variant}`, () => {
    describe("pack", () => {
      it("puts every element where the layout says, with zeros behind the last output", () => {
        const random = randomFor("pack");
        for (let i = 0; i < 150; i++) {
          checkPack(new KernelBench(variant, { bytes: 2 ** 18 }), {
            dtype: pick(random, DTYPES),
            gated: chance(random, 0.5) ? 1 : 0,
            outputs: between(random, 1, 30),
            inputs: pick(random, [between(random, 1, 12), between(random, 1, 60)]),
            strides: pick(random, ["rows", "columns", "interleaved", "wide"] as const),
            bits: () => random.bits(),
          });
        }
      });

      it("gives sizes beyond 4 GiB as they are", () => {
        const { kernels } = new KernelBench(variant, { bytes: 65536 });
        const { packedBytes, panelOutputs } = kernels;
        assert.equal(packedBytes(DTYPE_CODE.float32, 2 ** 20, 2 ** 12, 0), 2 ** 34);
        assert.equal(packedBytes(DTYPE_CODE.bfloat16, 2 ** 20, 2 ** 12, 1), 2 ** 34);
        assert.equal(packedBytes(DTYPE_CODE.bfloat16, 9, 3, 0), 2 * 16 * 3);
        assert.deepEqual([panelOutputs(0), panelOutputs(1)], [8, 4]);
      });
    });

    describe("toFloat32", () => {
      for (const dtype of HALF_DTYPES) {
        it(`is exact for every bit pattern of ${dtype}`, () => {
          const bench = new KernelBench(variant, { bytes: 2 ** 20 });
          const all = Uint16Array.from({ length: 65536 }, (_, i) => i);
          const dst = bench.allocate(4 * 65536);
          bench.kernels.toFloat32(dst, bench.put(all), 65536, DTYPE_CODE[dtype]);
          const bits = bench.words(dst, 65536);
          for (let i = 0; i < 65536; i++) assert.equal(bits[i], widened(i, dtype), `pattern ${i}`);
          bench.checkGuards();
        });
      }

      it("takes any count and touches nothing else", () => {
        for (const dtype of DTYPES) {
          for (let count = 0; count < 10; count++) {
            const bench = new KernelBench(variant, { bytes: 65536 });
            const floats = Float32Array.from({ length: count }, (_, i) => i - 3.5);
            const halves = Uint16Array.from({ length: count }, (_, i) => 0x3c00 + 77 * i);
            const src = bench.put(dtype === "float32" ? floats : halves, 2);
            const dst = bench.allocate(4 * count, 4);
            bench.kernels.toFloat32(dst, src, count, DTYPE_CODE[dtype]);
            const expected =
              dtype === "float32" ? floats : Float32Array.from(halves, (b) => decode(b, dtype));
            assert.deepEqual(bench.floats(dst, count), expected);
            bench.checkGuards();
          }
        }
      });
    });

    describe("fillUniform", () => {
      /** The sequence, filled in parts; as bits. */
      const fill = (dtype: WeightDType, seed: number, scale: number, parts: readonly number[]) => {
        const count = parts.reduce((a, b) => a + b, 0);
        const bench = new KernelBench(variant, { bytes: 2 ** 20 });
        const size = dtype === "float32" ? 4 : 2;
        const dst = bench.allocate(count * size);
        let first = 0;
        for (const part of parts) {
          const to = dst + first * size;
          bench.kernels.fillUniform(to, DTYPE_CODE[dtype], first, part, seed, scale);
          first += part;
        }
        bench.checkGuards();
        return size === 4 ? bench.words(dst, count) : bench.halves(dst, count);
      };
      const fillFloats = (seed: number, scale: number, count: number) =>
        new Float32Array(fill("float32", seed, scale, [count]).buffer);

      it("does not depend on how it is split", () => {
        for (const dtype of DTYPES) {
          assert.deepEqual(
            fill(dtype, 7, 0.1, [1, 2, 0, 4, 3, 5, 100]),
            fill(dtype, 7, 0.1, [115]),
          );
        }
      });

      it("is uniform over [-scale, scale] and different for every seed", () => {
        const count = 50_000;
        const values = fillFloats(1, 2, count);
        const moment = (n: number) => values.reduce((sum, x) => sum + x ** n, 0) / count;
        assert.ok(values.every((x) => Math.abs(x) <= 2));
        // Five standard errors of the first two moments.
        assert.ok(Math.abs(moment(1)) < 5 * Math.sqrt(4 / 3 / count));
        assert.ok(Math.abs(moment(2) - 4 / 3) < 5 * Math.sqrt(64 / 45 / count));
        const other = fillFloats(2, 2, count);
        const equal = values.filter((x, i) => x === other[i]).length;
        assert.ok(equal < 10, `${equal} equal values`);
      });

      for (const dtype of HALF_DTYPES) {
        it(`rounds to nearest even in ${dtype}, also where float16 is subnormal`, () => {
          for (const scale of [1, 1e-4, 1e-6]) {
            const exact = fillFloats(3, scale, 20_000);
            const rounded = fill(dtype, 3, scale, [20_000]);
            for (const [i, x] of exact.entries()) {
              const bits = rounded[i] as number;
              const error = Math.abs(decode(bits, dtype) - x);
              for (const neighbour of [bits - 1, bits + 1]) {
                const other = Math.abs(decode(neighbour & 0xffff, dtype) - x);
                const isNearest = error < other || (error === other && bits % 2 === 0);
                assert.ok(isNearest || Number.isNaN(other), `${x} rounded to ${bits}`);
              }
            }
          }
        });
      }
    });

    describe("combine", () => {
      it("equals the float64 sum or concatenation, to rounding", () => {
        const random = randomFor("combine");
        for (let i = 0; i < 100; i++) checkCombine(variant, random);
      });
    });

    it("sum adds up all elements", () => {
      const bench = new KernelBench(variant, { bytes: 65536 });
      const values = Float32Array.from({ length: 96 }, (_, i) => i + 1);
      assert.equal(bench.kernels.sum(bench.put(values), 4 * 96), (96 * 97) / 2);
    });
  });
}

/** The float32 bits of a 16-bit pattern. */
function widened(bits: number, dtype: WeightDType): number {
  if (dtype === "bfloat16") return (bits << 16) >>> 0;
  const isNaN16 = (bits & 0x7fff) > 0x7c00;
  if (isNaN16) return (((bits & 0x8000) << 16) | 0x7f800000 | ((bits & 0x3ff) << 13)) >>> 0;
  return new Uint32Array(Float32Array.of(decode(bits, dtype)).buffer)[0] as number;
}

interface PackCase {
  readonly dtype: WeightDType;
  readonly gated: Flag;
  readonly outputs: number;
  readonly inputs: number;
  readonly strides: "rows" | "columns" | "interleaved" | "wide";
  readonly bits: () => number;
}

function checkPack(bench: KernelBench, c: PackCase): void {
  const { dtype, gated, outputs, inputs } = c;
  const { kernels } = bench;
  const code = DTYPE_CODE[dtype];
  const wide = dtype === "float32";
  const perPanel = kernels.panelOutputs(gated);
  const [rowStride, columnStride, length] = {
    rows: [inputs, 1, outputs * inputs],
    columns: [1, outputs, outputs * inputs],
    interleaved: [2, 2 * outputs, 2 * outputs * inputs],
    wide: [inputs + 5, 1, outputs * (inputs + 5)],
  }[c.strides] as [number, number, number];
  const bytes = kernels.packedBytes(code, outputs, inputs, gated);
  const panels = Math.ceil(outputs / perPanel);
  const size = wide ? 4 : 2;
  const panelsBytes = panels * 8 * inputs * size;
  const dst = bench.clear(bench.allocate(bytes), bytes);
  const parts = gated ? (["gate", "value"] as const) : (["value"] as const);
  const expected = wide ? new Uint32Array(panelsBytes / 4) : new Uint16Array(panelsBytes / 2);
  for (const part of parts) {
    const source = wide
      ? Int32Array.from({ length }, c.bits)
      : Uint16Array.from({ length }, c.bits);
    const address = bench.put(source, size);
    // In pieces of one panel or more, as workers would.
    for (let first = 0; first < outputs; ) {
      const count = Math.min(perPanel * (1 + (c.bits() % 3)), outputs - first);
      const src = address + first * rowStride * size;
      kernels.pack(
        ...([dst, code, outputs, inputs, gated, PART_CODE[part], first, count, src] as const),
        ...([rowStride, columnStride] as const),
      );
      first += count;
    }
    for (let o = 0; o < outputs; o++) {
      const inPanel = (o % perPanel) + (gated && part === "value" ? 4 : 0);
      const slot = wide ? inPanel : 2 * (inPanel % 4) + (inPanel >> 2);
      for (let k = 0; k < inputs; k++) {
        const at = (Math.floor(o / perPanel) * inputs + k) * 8 + slot;
        expected[at] = source[o * rowStride + k * columnStride] as number;
      }
    }
  }
  const packed = wide ? bench.words(dst, expected.length) : bench.halves(dst, expected.length);
  assert.deepEqual(packed, expected, JSON.stringify(c));
  bench.checkGuards();
}

function checkCombine(
  variant: (typeof VARIANTS)[number],
  random: ReturnType<typeof randomFor>,
): void {
  const tokens = between(random, 1, 9);
  const topK = between(random, 1, 6);
  const width = pick(random, [between(random, 1, 20), between(random, 1, 200)]);
  const concat: Flag = chance(random, 0.3) ? 1 : 0;
  const slots = tokens * topK;
  const bench = new KernelBench(variant, { bytes: 2 ** 18 });
  const optional = (probability: number, length: number) =>
    chance(random, probability) ? normal(random, length) : undefined;
  const put = (values: Float32Array | undefined) => (values ? bench.put(values) : 0);

  const rows = normal(random, slots * width);
  const rowOf = Int32Array.from({ length: slots }, (_, i) => i);
  for (let i = slots - 1; i > 0; i--) {
    const j = random.integer(i + 1);
    [rowOf[i], rowOf[j]] = [rowOf[j] as number, rowOf[i] as number];
  }
  const inverse = rowOf.map((row) => (chance(random, 0.15) ? -1 : row));
  const weights = optional(0.8, slots);
  const shared = concat ? undefined : optional(0.5, tokens * width);
  const sharedScale = shared && optional(0.5, tokens);
  const residual = concat ? undefined : optional(0.5, tokens * width);

  const length = (concat ? slots : tokens) * width;
  const output = bench.allocate(4 * length, 4);
  const addresses = [rows, weights, shared, sharedScale, residual].map(put);
  const [rowsAt, weightsAt, sharedAt, scaleAt, residualAt] = addresses as [
    number,
    number,
    number,
    number,
    number,
  ];
  const inverseAt = bench.put(inverse);
  const run = (first: number, count: number) =>
    bench.kernels.combine(
      ...([first, count, topK, width, rowsAt, inverseAt, weightsAt] as const),
      ...([sharedAt, scaleAt, residualAt, output, concat] as const),
    );
  run(0, tokens);
  const actual = bench.floats(output, length);
  bench.checkGuards();

  const term = (slot: number, column: number) => {
    const row = inverse[slot] as number;
    return row < 0 ? 0 : (weights?.[slot] ?? 1) * (rows[row * width + column] as number);
  };
  for (let i = 0; i < length; i++) {
    const column = i % width;
    const line = Math.floor(i / width);
    const terms = concat
      ? [term(line, column)]
      : [
          ...Array.from({ length: topK }, (_, c) => term(line * topK + c, column)),
          (sharedScale?.[line] ?? 1) * (shared?.[i] ?? 0),
          residual?.[i] ?? 0,
        ];
    const expected = terms.reduce((a, b) => a + b, 0);
    const bound = 2 ** -23 * terms.length * terms.reduce((a, b) => a + Math.abs(b), 0);
    const error = Math.abs((actual[i] as number) - expected);
    assert.ok(error <= bound, `element ${i}: ${actual[i]}, expected ${expected}`);
  }

  // Token by token gives the same bits.
  for (let t = 0; t < tokens; t++) run(t, 1);
  assert.deepEqual(bench.floats(output, length), actual);
}
