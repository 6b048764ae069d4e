/** Calls of NVML that the FFI does not make, or that fail in it: what is said, and that nothing is kept. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { DeviceFailedError } from "../../../../src/errors.ts";
import { nvmlIn } from "../../../../src/execution/cuda/nvml/ffi.ts";
import type { NativeLibrary } from "../../../../src/execution/native/library.ts";
import { collectGarbage } from "../../../support/garbage.ts";

type Callback = (error: Error | null, status: number) => void;

const broken = new Error("Cannot do that");

/** Ways to fail, of a function's `async` or of looking it up. */
const FAILURES: Readonly<Record<string, () => unknown>> = {
  "refuses the arguments": () => ({
    async: () => {
      throw broken;
    },
  }),
  "fails on its thread": () => ({
    async: (...given: unknown[]) => setImmediate(given.at(-1) as Callback, broken, 0),
  }),
  "cannot bind the entry point": () => {
    throw broken;
  },
};

describe("a call that the FFI", () => {
  for (const [how, find] of Object.entries(FAILURES)) {
    it(`${how} rejects by name, and lets its memory go`, async () => {
      const nvml = nvmlIn({ find } as unknown as NativeLibrary);
      const call = async (): Promise<WeakRef<object>> => {
        const count = new Uint32Array(1);
        await assert.rejects(nvml.call("nvmlDeviceGetCount_v2", count), (error) => {
          assert.ok(error instanceof DeviceFailedError, String(error));
          assert.match(
            error.message,
            /^nvmlDeviceGetCount_v2 could not be called: Cannot do that\./,
          );
          assert.equal(error.cause, broken);
          return true;
        });
        return new WeakRef(count);
      };
      const memory = await call();
      // A WeakRef holds until the turn of the event loop that made it is over.
      await new Promise((resolve) => setImmediate(resolve));
      collectGarbage();
      assert.equal(memory.deref(), undefined);
      // The library is still there, so what it keeps would be, too.
      assert.ok(nvml);
    });
  }
});
