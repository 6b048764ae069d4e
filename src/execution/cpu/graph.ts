/**
 * A captured graph on the CPU: a program, kept. It holds no device memory of its
 * own; launching it copies the program to where programs run.
 */

import { DisposedError } from "../../errors.ts";
import type { Graph } from "../device.ts";
import type { Resource } from "../operator-checks.ts";
import { buildProgram } from "./program.ts";
import type { Recorder } from "./recorder.ts";

/** What a graph needs of the device it belongs to. */
export interface GraphOwner {
  requireOpen(): void;
  /** Counts up when a buffer or a projection is closed. */
  readonly closures: number;
  submit(image: Int32Array): Promise<void>;
}

/** @throws DisposedError naming the first resource that is closed */
export function requireOpen(resources: Iterable<Resource>): void {
  for (const resource of resources) {
    if (resource.closed) throw new DisposedError(`"${resource.label}", which the work uses,`);
  }
}

export class CpuGraph implements Graph {
  readonly nodes: number;
  readonly #owner: GraphOwner;
  readonly #image: Int32Array;
  readonly #resources: readonly Resource[];
  /** `closures` when the resources were last seen to be open. */
  #checkedAt: number;
  #closed = false;

  constructor(owner: GraphOwner, recorder: Recorder) {
    this.#owner = owner;
    this.nodes = recorder.nodes.length;
    this.#image = buildProgram(recorder.nodes);
    this.#resources = [...recorder.resources];
    this.#checkedAt = owner.closures;
  }

  /** Concurrent launches run one after the other. */
  launch(): Promise<void> {
    try {
      this.#owner.requireOpen();
      if (this.#closed) throw new DisposedError("The graph");
      if (this.#checkedAt !== this.#owner.closures) {
        requireOpen(this.#resources);
        this.#checkedAt = this.#owner.closures;
      }
    } catch (error) {
      return Promise.reject(error);
    }
    return this.#owner.submit(this.#image);
  }

  [Symbol.dispose](): void {
    this.#closed = true;
  }
}
