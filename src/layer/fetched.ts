/**
 * What is brought back of a step. It is asked for as soon as the step is launched, behind which it comes, so that the
 * host waits once and not twice. What is mirrored (counts) is not in it: that is read when the step is over.
 */

import { type DroppedSlot, droppedSlots } from "../data/buckets.ts";
import type { RouterSpec } from "../data/spec.ts";
import type { StepBuffers } from "../data/step-buffers.ts";
import type { Device, DeviceBuffer } from "../execution/device.ts";
import type { DeviceTensor } from "../execution/device-tensor.ts";
import { sizeOf, type Tensor } from "../tensor.ts";
import type { Routing } from "./forward.ts";

/** What of a step is wanted back. */
export interface Wanted {
  readonly tokens: number;
  /** Of the output. */
  readonly shape: readonly number[];
  /** Where the output stays, if it does. */
  readonly onDevice: DeviceTensor | undefined;
  /** Whether expert ids and weights are wanted. */
  readonly routing: boolean;
  /** Whether the experts' times were taken. */
  readonly timed: boolean;
}

export interface Fetched {
  readonly output: Tensor<Float32Array> | DeviceTensor;
  /** If it was wanted. */
  readonly routing: Routing | undefined;
  /** Slots that had no room. */
  readonly dropped: readonly DroppedSlot[];
  /** As `StepBuffers.busy`. */
  readonly busy: Int32Array | undefined;
}

/** Asks for it at once, and resolves when it is there. */
export async function fetchStep(
  device: Pick<Device, "read">,
  { experts, topK, capacityFactor }: RouterSpec,
  buffers: StepBuffers,
  { tokens, shape, onDevice, routing, timed }: Wanted,
): Promise<Fetched> {
  const transfers: Promise<void>[] = [];
  const fetch = <Into extends ArrayBufferView>(source: DeviceBuffer, into: Into): Into => {
    transfers.push(device.read(source, into));
    return into;
  };
  const slots = tokens * topK;
  const limited = capacityFactor !== undefined;
  const output = onDevice ?? {
    dtype: "float32",
    shape,
    data: fetch(buffers.output, new Float32Array(sizeOf(shape))),
  };
  const ids = routing || limited ? fetch(buffers.ids, new Int32Array(slots)) : undefined;
  const weights = routing ? fetch(buffers.weights, new Float32Array(slots)) : undefined;
  const inverse = limited ? fetch(buffers.buckets.inverse, new Int32Array(slots)) : undefined;
  const busy = timed && buffers.busy ? fetch(buffers.busy, new Int32Array(experts)) : undefined;
  await Promise.all(transfers);
  return {
    output,
    routing: ids && weights && { ids, weights },
    dropped: ids && inverse ? droppedSlots(inverse, ids, topK) : [],
    busy,
  };
}
