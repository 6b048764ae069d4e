/**
 * A captured graph on the CPU: a program, kept. It holds no device memory of its
 * own; launching it copies the program to where programs run.
 */

import { DisposedError } from "../../errors.ts";
import { runBetweenCopies } from "../copied-substitutes.ts";
import type { DeviceBuffer, Graph, Substitute } from "../device.ts";
import { type Resource, requireOpen } from "../operator-checks.ts";
import { checkedSubstitutes } from "../substitute-checks.ts";
import type { CpuBuffer } from "./buffer.ts";
import { buildProgram } from "./program.ts";
import type { Recorder } from "./recorder.ts";

/** What a graph needs of the device it belongs to. */
export interface GraphOwner {
  requireOpen(): void;
  /** Counts up when a buffer or a projection is closed. */
  readonly closures: number;
  submit(image: Int32Array): Promise<void>;
  owns(buffer: DeviceBuffer): buffer is CpuBuffer;
  /** Copies once everything submitted so far is over, and before what is submitted later. */
  copyInTurn(target: CpuBuffer, source: CpuBuffer, bytes: number): Promise<void>;
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

  /** Concurrent launches run one after the other. Programs hold on to addresses, so substitutes are copied. */
  launch(substitutes: readonly Substitute[] = []): Promise<void> {
    const owner = this.#owner;
    const work: Promise<void>[] = [];
    try {
      this.#requireOpen();
      const isOwn = (buffer: DeviceBuffer): buffer is CpuBuffer => owner.owns(buffer);
      const checked = checkedSubstitutes(substitutes, this.#resources, isOwn);
      if (checked.length === 0) return owner.submit(this.#image);
      runBetweenCopies(
        checked,
        (target, source, bytes) => work.push(owner.copyInTurn(target, source, bytes)),
        () => work.push(owner.submit(this.#image)),
      );
    } catch (error) {
      return Promise.reject(error);
    }
    return Promise.all(work).then(() => {});
  }

  #requireOpen(): void {
    this.#owner.requireOpen();
    if (this.#closed) throw new DisposedError("The graph");
    if (this.#checkedAt === this.#owner.closures) return;
    requireOpen(this.#resources);
    this.#checkedAt = this.#owner.closures;
  }

  [Symbol.dispose](): void {
    this.#closed = true;
  }
}
