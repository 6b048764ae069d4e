/** How rows lie in a GPU's memory. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { rowLayoutOf } from "../../../src/execution/cuda/rows.ts";

test("have the weights' type and a pitch of whole 64s", () => {
  assert.deepEqual(rowLayoutOf(100, "bfloat16"), { dtype: "bfloat16", width: 100, pitch: 128 });
  assert.deepEqual(rowLayoutOf(64, "float32"), { dtype: "float32", width: 64, pitch: 64 });
  assert.throws(() => rowLayoutOf(0, "float16"), /Rows cannot have 0 values/);
  assert.throws(() => rowLayoutOf(2.5, "float16"), /Rows cannot have 2\.5 values/);
  assert.throws(() => rowLayoutOf(64, "int32"), {
    name: "InvalidArgumentError",
    message: /Rows for weights of "int32" are not supported/,
  });
});
