/** A device short of memory at a point of a test's choice: real shortage comes where the sizes of blocks say. */

import { OutOfDeviceMemoryError } from "../../src/errors.ts";
import type { Device } from "../../src/execution/device.ts";
import type { Operator } from "../../src/execution/operators.ts";

/** Makes streams of the device refuse one kind of operator until what is returned is disposed of. */
export function withoutMemoryFor(device: Device, kind: Operator["kind"]): Disposable {
  const { createStream } = device;
  device.createStream = (options) => {
    const stream = createStream.call(device, options);
    const { enqueue } = stream;
    stream.enqueue = (operator) => {
      if (operator.kind === kind) throw new OutOfDeviceMemoryError("work lists", 4, 0, "Wait.");
      enqueue.call(stream, operator);
    };
    return stream;
  };
  return {
    [Symbol.dispose]() {
      device.createStream = createStream;
    },
  };
}
