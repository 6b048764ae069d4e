/** Layouts of NVML's structures: as nvml.h 12.9 has them, and as a C compiler here does. */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  DEVICE_ATTRIBUTES,
  MEMORY,
  UTILIZATION,
} from "../../../../src/execution/cuda/nvml/structs.ts";
import { buildFakeNvml } from "./fake-library.ts";

/** Printed by a C program that included nvml.h 12.9, gcc 12 on x86-64. */
const HEADER_12_9 = [
  [8, 0, 4],
  [24, 0, 16],
  [40, 0, 24, 28, 32],
];

/** Size first, then the offsets; the order of the constants is that of the fields. */
const OURS = [UTILIZATION, MEMORY, DEVICE_ATTRIBUTES].map((struct) => Object.values(struct));

test("sizes and offsets are those of the header", () => {
  assert.deepEqual(OURS, HEADER_12_9);
});

const fake = buildFakeNvml();

test("and of the C compiler of this machine", { skip: typeof fake === "string" && fake }, () => {
  assert.ok(typeof fake !== "string");
  const numbers = new Int32Array(64);
  const count = fake.find("fake_layout", ["void *"])?.(numbers) ?? 0;
  assert.deepEqual([...numbers.subarray(0, count)], OURS.flat());
});
