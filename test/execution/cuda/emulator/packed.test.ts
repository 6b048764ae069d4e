/** Weights in 12 bits: what the emulated kernels pack they unpack to the bit, and what cannot be packed they count. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { Random } from "../../../../src/workload/random.ts";
import { between, normal, pick, randomFor } from "../../../support/seed.ts";
import { pack, rowsOf, type Sizes, sprinkle, unpack, type Weigh } from "./packed-weights.ts";

/** Padding in n and in k, several matrices. */
const ODD: Sizes = { matrices: 2, n: 128, k: 192, columns: 150 };
const ODD_ROWS = 100;
const SMALL: Sizes = { matrices: 1, n: 64, k: 128, columns: 128 };

/** Rows with zeros where there is padding. */
function padded(sizes: Sizes, weigh: Weigh): Float32Array[] {
  const { n, columns } = sizes;
  return rowsOf(sizes, (row, column) =>
    row % n < ODD_ROWS && column < columns ? weigh(row, column) : 0,
  );
}

function gaussian(random: Random, deviation: number): Weigh {
  return () => normal(random, 1, deviation)[0] as number;
}

/** Each exponent of a window as often as the others. */
function even(random: Random, top = 0): Weigh {
  return () => signed(random, (1 + random.integer(128) / 128) * 2 ** (top - random.integer(16)));
}

function signed(random: Random, size: number): number {
  return random.uniform() < 0.5 ? size : -size;
}

/** @param rows all weights that are no padding are to be found again; the rest is to be harmless */
function checkRoundTrip(sizes: Sizes, rows: readonly Float32Array[]): void {
  const packed = pack(sizes, rows);
  assert.equal(packed.failures, 0);
  for (let matrix = 0; matrix < sizes.matrices; matrix++) {
    const own = rows.slice(matrix * sizes.n, (matrix + 1) * sizes.n);
    for (const [i, got] of unpack(packed, matrix).entries()) {
      const row = (own[i] as Float32Array).subarray(0, sizes.columns);
      // Of a row of zeros no sign is kept.
      const wanted = row.every((weight) => weight === 0) ? row.map(() => 0) : row;
      assert.deepEqual(got.slice(0, sizes.columns), wanted.slice(), `row ${i} of ${matrix}`);
      const scale = packed.scales[matrix * sizes.n + i] as number;
      for (const beyond of got.subarray(sizes.columns)) {
        const size = Math.abs(beyond) / scale;
        assert.ok(scale === 0 || (size >= 2 ** -15 && size < 2), `${size} in padding`);
      }
    }
  }
}

describe("packed weights", () => {
  const families: Record<string, (random: Random) => Float32Array[]> = {
    "normal weights": (random) => padded(ODD, gaussian(random, 0.02)),
    "a scale of its own for every row": (random) => {
      const weigh = gaussian(random, 1);
      const scales = Array.from({ length: 256 }, () => 2 ** between(random, -90, 90));
      return padded(ODD, (row, column) => weigh(row, column) * (scales[row] as number));
    },
    "heavy tails": (random) => {
      const rows = padded(ODD, gaussian(random, 1));
      sprinkle(random, rows, ODD.columns, 4, (weight) => weight * 2 ** between(random, -20, 6));
      return rows;
    },
    "windows that are full, and as many patches as there may be": (random) => {
      const rows = padded(ODD, even(random));
      sprinkle(random, rows, ODD.columns, 8, () =>
        pick(random, [0, -0, signed(random, 2 ** between(random, -80, -30)), 2 ** -133]),
      );
      return rows;
    },
    "the smallest normal numbers, and denormals": (random) => padded(ODD, even(random, -118)),
    "nothing but denormals": (random) =>
      padded(ODD, () => signed(random, between(random, 1, 127) * 2 ** -133)),
    "the largest numbers": (random) => padded(ODD, even(random, 127)),
    "rows of zeros of both signs": (random) => {
      const weigh = even(random);
      return padded(ODD, (row, column) => (row % 3 === 0 ? signed(random, 0) : weigh(row, column)));
    },
    "nothing but zeros": () => padded(ODD, () => 0),
  };
  for (const [name, draw] of Object.entries(families)) {
    it(`are themselves again: ${name}`, () => checkRoundTrip(ODD, draw(randomFor(name))));
  }

  it("are themselves again where a group has flags in several words", () => {
    const random = randomFor("packed flags");
    const sizes = { matrices: 1, n: 64, k: 34 * 64, columns: 34 * 64 };
    const rows = rowsOf(sizes, even(random));
    sprinkle(random, rows, sizes.columns, 1, () => 0);
    checkRoundTrip(sizes, rows);
  });

  it("do not depend on what padding holds, nor on how many programs pack them", () => {
    const random = randomFor("packed padding");
    const rows = padded(ODD, even(random));
    const expected = pack(ODD, rows);
    for (const row of rows) row.fill(Number.POSITIVE_INFINITY, ODD.columns);
    assert.deepEqual(pack(ODD, rows), expected);
    for (const programs of [1, 2, 16, 40]) assert.deepEqual(pack(ODD, rows, programs), expected);
  });

  it("have these words", () => {
    const sizes = { matrices: 1, n: 64, k: 64, columns: 64 };
    const rows = rowsOf(sizes, () => 1);
    const set = (row: number, column: number, weight: number) => {
      (rows[row] as Float32Array)[column] = weight;
    };
    // Lane 10 of group 1, weight 7 of its word 2.
    set(21, 45, -1.75 * 2 ** -3);
    // Exponent 107, out of the window.
    set(0, 0, 1.5 * 2 ** -20);
    // Lane 31, weight 6 of its word 3.
    set(15, 62, 0);
    const { words, scales, flags, patches, failures } = pack(sizes, rows);
    const plane = (p: number) => words.subarray(512 * p, 512 * (p + 1));
    const at = [0, 31 * 4 + 3, 128 + 10 * 4 + 2] as const;
    const wanted = [
      Array<number>(512).fill(0x80808080 | 0),
      Array<number>(512).fill(0x80808080 | 0),
      Array<number>(512).fill(0x77777777),
    ] as const;
    wanted[0][at[0]] = 0x808080c0 | 0;
    wanted[2][at[0]] = 0x77777775;
    wanted[1][at[1]] = 0x80008080 | 0;
    wanted[2][at[1]] = 0x77077777;
    wanted[1][at[2]] = 0x60808080;
    wanted[2][at[2]] = 0x6777777f;
    for (const [p, expected] of wanted.entries()) assert.deepEqual([...plane(p)], expected);
    assert.deepEqual([...scales], Array(64).fill(1));
    assert.deepEqual([...flags], [1, 0, 0, 0]);
    assert.deepEqual(
      [...new Uint16Array(patches.buffer, 0, 8)].sort(),
      [0, 0, 0, 0, 0, 0, 1, 0x3fe7],
    );
    assert.equal(failures, 0);
  });

  it("are counted where a group needs more than 8 patches in a panel", () => {
    const random = randomFor("packed failures");
    for (const small of [0, 2 ** -40, -(2 ** -130)]) {
      const failures = (count: number, columns: number) => {
        const rows = rowsOf(SMALL, even(random));
        sprinkle(random, rows.slice(16, 32), columns, count, () => small);
        return pack(SMALL, rows).failures;
      };
      assert.equal(failures(8, 128), 0);
      assert.equal(failures(9, 64), 1);
      assert.equal(failures(9, 128), 2);
    }
  });

  it("are counted where they are not finite, or no row's scale fits them", () => {
    const random = randomFor("not to be packed");
    const bad = [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
    for (const weight of [...bad, 2 ** -133]) {
      const rows = rowsOf(SMALL, even(random, 12));
      const row = rows[between(random, 0, 63)] as Float32Array;
      row[between(random, 0, 127)] = weight;
      assert.ok(pack(SMALL, rows).failures > 0, `${weight}`);
    }
  });

  it("have the window that leaves fewest weights out, of several the highest", () => {
    const random = randomFor("packed windows");
    const lowered = new Set<number>();
    for (let round = 0; round < 40; round++) {
      const rows = rowsOf(SMALL, even(random));
      sprinkle(random, rows, 128, between(random, 0, 8), () => 2 ** between(random, -20, 7));
      const { scales, patches, failures } = pack(SMALL, rows);
      let all = 0;
      for (const [i, row] of rows.entries()) {
        const exponents = Array.from(row, (weight) => Math.floor(Math.log2(Math.abs(weight))));
        const largest = Math.max(...exponents);
        const outside = Array.from({ length: 8 }, (_, d) => {
          const inside = (e: number) => e <= largest - d && e >= largest - d - 15;
          return exponents.filter((e) => !inside(e)).length;
        });
        const fewest = Math.min(...outside);
        const d = outside.indexOf(fewest);
        assert.equal(scales[i], 2 ** (largest - d), `${outside}`);
        lowered.add(d);
        all += fewest;
      }
      const records = new Uint16Array(patches.buffer).filter((record) => record !== 0).length;
      if (failures === 0) assert.equal(records, all);
    }
    assert.ok(lowered.size > 4, `only windows ${[...lowered]} below the largest`);
  });
});

describe("the emulated reader of packed weights", () => {
  it("looks at patches only where a flag is up", () => {
    const random = randomFor("unflagged patches");
    const rows = rowsOf(SMALL, even(random));
    const packed = pack(SMALL, rows);
    packed.patches.fill(0x0abcn);
    assert.deepEqual(unpack(packed), rows);
    packed.flags[0] = 2;
    assert.notDeepEqual(unpack(packed), rows);
  });

  it("wants a tensor map of the words", () => {
    const packed = pack(SMALL, rowsOf(SMALL, even(randomFor("packed maps"))));
    unpack(packed, 0, { shape: [5, 3, 16, 32] });
    for (const changes of [
      { element: "fp32" },
      { shape: [1, 3, 16, 32] },
      { shape: [2, 3, 512] },
      { shape: [2, 1, 16, 32] },
      { box: [1, 1, 16, 32] },
      { box: [4, 3, 16, 32] },
      { swizzle: 0 },
    ] as const) {
      assert.throws(() => unpack(packed, 0, changes), /A tensor map of .* does not fit w, i32/);
    }
  });
});
