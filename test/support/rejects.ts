/** A call that is to be refused. */

import assert from "node:assert/strict";

/** That the call, or the promise it gives, fails with an error of this type and message. */
export function rejectsWith(
  call: () => unknown,
  message: RegExp,
  // biome-ignore lint/suspicious/noExplicitAny: only told apart, never called
  type: new (...given: any[]) => Error,
): Promise<void> {
  return assert.rejects(
    async () => await call(),
    (error) => {
      assert.ok(error instanceof type, String(error));
      assert.match(error.message, message);
      return true;
    },
  );
}
