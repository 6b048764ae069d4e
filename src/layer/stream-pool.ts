/**
 * The streams a layer's steps run on, one set per layout of lanes. Layouts come
 * back as load shifts to and fro, and captured graphs refer to the streams they
 * were captured on, so a set is kept until the layer closes. The number of
 * layouts is small: it is the number of ways to divide the lanes among three slices.
 */

import type { Device } from "../execution/device.ts";
import { type LaneLayout, StepStreams } from "./step.ts";

export class StreamPool implements Disposable {
  readonly #device: Device;
  readonly #sets = new Map<string, StepStreams>();

  constructor(device: Device) {
    this.#device = device;
  }

  /** Same string, same streams: the part of a graph's key that the lanes decide. */
  keyOf(layout: LaneLayout): string {
    return `${layout.sliceOfLane.join("")}:${layout.priorityOfLane.join(",")}`;
  }

  get(layout: LaneLayout): StepStreams {
    const key = this.keyOf(layout);
    let set = this.#sets.get(key);
    if (set === undefined) {
      set = new StepStreams(this.#device, layout);
      this.#sets.set(key, set);
    }
    return set;
  }

  [Symbol.dispose](): void {
    for (const set of this.#sets.values()) set[Symbol.dispose]();
    this.#sets.clear();
  }
}
