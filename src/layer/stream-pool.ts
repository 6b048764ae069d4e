/**
 * The streams a layer's steps run on, one set per layout of lanes. Layouts come
 * back as load shifts to and fro, and captured graphs refer to the streams they
 * were captured on, so a set is kept until the layer closes. The number of
 * layouts is small: the ways to divide the lanes among three slices, times the
 * three orders the stream scheduler puts them in.
 */

import type { Device } from "../execution/device.ts";
import { type LaneLayout, StepStreams } from "./step.ts";

export class StreamPool implements Disposable {
  readonly #device: Device;
  readonly #sets = new Map<string, StepStreams>();

  constructor(device: Device) {
    this.#device = device;
  }

  /** The streams of a layout; the same ones for the same `laneKey`. */
  get(layout: LaneLayout & { readonly laneKey: string }): StepStreams {
    let set = this.#sets.get(layout.laneKey);
    if (set === undefined) {
      set = new StepStreams(this.#device, layout);
      this.#sets.set(layout.laneKey, set);
    }
    return set;
  }

  [Symbol.dispose](): void {
    for (const set of this.#sets.values()) set[Symbol.dispose]();
    this.#sets.clear();
  }
}
