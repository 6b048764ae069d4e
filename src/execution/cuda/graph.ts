/**
 * A captured graph on the GPU: the driver's graph of a recording, instantiated once.
 * Launching it is one call; what it takes from the host is in pinned memory or in the
 * graph itself.
 *
 * When budgets have changed since the last launch, the kernels that fill so many
 * multiprocessors as their budget says get new grids, in place; when a launch has other
 * buffers in the place of the graph's own, kernels get their addresses. Nothing is
 * captured again.
 */

import { DisposedError, type NexusError } from "../../errors.ts";
import { runBetweenCopies } from "../copied-substitutes.ts";
import type { Graph, Substitute } from "../device.ts";
import { type Resource, requireOpen } from "../operator-checks.ts";
import type { CudaBudgets } from "./budgets.ts";
import type { Driver } from "./driver/driver.ts";
import { type IssuedKernel, type IssueSite, issue } from "./issue.ts";
import type { BufferOwner, GpuBuffer } from "./memory.ts";
import type { Recording } from "./recorder.ts";
import {
  type GpuSubstitute,
  requireSubstitutes,
  type SubstitutedKernel,
  Substitution,
} from "./substitution.ts";
import type { Job } from "./timeline.ts";

/** What a graph needs of the device it belongs to. */
export interface GraphOwner extends BufferOwner {
  readonly site: IssueSite;
  /** Counts up when a buffer or a projection is closed. */
  readonly closures: number;
  requireOpen(): void;
  submit(job: Job): Promise<void>;
  /** What every submission does first. @throws CudaError if the driver refuses the budgets */
  begin(budgets: CudaBudgets): void;
  /** What every submission does last: its mirrors are current; returns the fault it found. */
  finish(mirrored: readonly GpuBuffer[]): NexusError | undefined;
  mirroredBy(recording: Recording): readonly GpuBuffer[];
  /** Does something once everything submitted so far is over. */
  afterwards(action: () => void): void;
  /** The graph is closed and nothing in flight uses it any more. */
  dropGraph(graph: CudaGraph): void;
}

/** A kernel as a node of the graph. */
interface KernelNode extends IssuedKernel {
  readonly node: bigint;
  readonly pointers: SubstitutedKernel["pointers"];
  /** Width of its grid for the budgets in force. */
  x: number;
}

const NO_SUBSTITUTES: readonly GpuSubstitute[] = [];

export class CudaGraph implements Graph, Job {
  readonly nodes: number;
  /** What the graph was captured with: its partitions stay for as long as it does. */
  readonly budgets: CudaBudgets;
  readonly owner: GraphOwner;
  readonly #driver: Driver;
  readonly #launchStream: bigint;
  readonly #recording: Recording;
  readonly #resources: readonly Resource[];
  readonly #mirrored: readonly GpuBuffer[];
  readonly #kernels: KernelNode[] = [];
  readonly #substitution: Substitution<KernelNode>;
  /** Kernels whose nodes do not have yet what is written down for them. */
  readonly #changed = new Set<KernelNode>();
  readonly #graph: bigint;
  readonly #exec: bigint;
  /** Budgets that the grids are for. */
  #applied: CudaBudgets;
  /** `closures` when the resources were last seen to be open. */
  #checkedAt: number;
  #closed = false;

  /** @throws CudaError if the driver refuses the capture; the device stays usable */
  constructor(owner: GraphOwner, recording: Recording, budgets: CudaBudgets) {
    this.owner = owner;
    this.#driver = owner.site.driver;
    this.#launchStream = owner.site.streams.launch;
    this.nodes = recording.operators;
    this.#recording = recording;
    this.#resources = [...recording.resources];
    this.#mirrored = owner.mirroredBy(recording);
    this.#checkedAt = owner.closures;
    this.budgets = budgets;
    this.#applied = budgets;
    this.#graph = this.#capture();
    // The driver (580) changes no node that was captured in a green context.
    const fixed = budgets.partitions !== undefined;
    this.#substitution = new Substitution(recording, this.#kernels, fixed);
    try {
      this.#exec = this.#driver.instantiateGraph(this.#graph);
    } catch (error) {
      this.#driver.destroyGraph(this.#graph);
      throw error;
    }
    try {
      this.#driver.uploadGraph(this.#exec, this.#launchStream);
    } catch (error) {
      this.destroy();
      throw error;
    }
  }

  /** Concurrent launches run one after the other. */
  launch(substitutes: readonly Substitute[] = NO_SUBSTITUTES): Promise<void> {
    let checked = NO_SUBSTITUTES;
    try {
      this.requireOpen();
      checked = requireSubstitutes(substitutes, this.#resources, this.owner);
    } catch (error) {
      return Promise.reject(error);
    }
    if (checked.length === 0) return this.owner.submit(this);
    return this.owner.submit({
      prepare: (budgets) => this.prepare(budgets, checked),
      issue: () => this.#issueAround(checked),
      finish: () => this.finish(),
    });
  }

  /** @throws DisposedError, DeviceFailedError if the graph cannot be launched */
  requireOpen(): void {
    this.owner.requireOpen();
    if (this.#closed) throw new DisposedError("The graph");
    if (this.#checkedAt === this.owner.closures) return;
    requireOpen(this.#resources);
    this.#checkedAt = this.owner.closures;
  }

  /** @internal Makes the graph run under these budgets, and with these substitutes. @throws CudaError if the driver refuses that */
  prepare(budgets: CudaBudgets, substitutes = NO_SUBSTITUTES): void {
    this.owner.begin(budgets);
    if (budgets !== this.#applied) this.#follow(budgets);
    this.#substitution.apply(substitutes, this.#changed);
    for (const kernel of this.#changed) {
      const { launch } = kernel.work;
      const { y, z } = launch.grid;
      this.#driver.setNodeLaunch(this.#exec, kernel.node, { x: kernel.x, y, z }, launch.params);
      this.#changed.delete(kernel);
    }
  }

  /** @internal Puts the graph on the launch stream as it is. */
  issue(): void {
    this.#driver.launchGraph(this.#exec, this.#launchStream);
  }

  /** @internal */
  finish(): NexusError | undefined {
    return this.owner.finish(this.#mirrored);
  }

  /** Launches under way run to their end. */
  [Symbol.dispose](): void {
    if (this.#closed || this.owner.closed) return;
    this.#closed = true;
    this.owner.afterwards(() => this.owner.dropGraph(this));
  }

  /** @internal Gives everything back. Nothing may be in flight. */
  destroy(): void {
    this.#recording.dispose();
    try {
      this.#driver.destroyGraphExec(this.#exec);
    } finally {
      this.#driver.destroyGraph(this.#graph);
    }
  }

  #capture(): bigint {
    const { site } = this.owner;
    this.#driver.beginCapture(this.#launchStream);
    try {
      issue(this.#recording, site, this.budgets, (kernel, stream) => {
        const node = this.#driver.lastCapturedNode(stream);
        const { launch } = kernel.work;
        this.#kernels.push({ ...kernel, node, pointers: launch.pointers(), x: launch.grid.x });
      });
    } catch (error) {
      this.#abandon();
      throw error;
    }
    return this.#driver.endCapture(this.#launchStream);
  }

  /** Ends a capture that went wrong, which frees the streams that had joined it. */
  #abandon(): void {
    try {
      this.#driver.destroyGraph(this.#driver.endCapture(this.#launchStream));
    } catch {
      // The driver reports the failure that is being reported already.
    }
  }

  /** New grids for new budgets. What lives in partitions keeps those it was captured in. */
  #follow(budgets: CudaBudgets): void {
    this.#applied = budgets;
    if (this.budgets.partitions !== undefined || budgets.partitions !== undefined) return;
    for (const kernel of this.#kernels) {
      const { work, group, streams } = kernel;
      if (!work.budgeted || !work.persistent) continue;
      const x = work.blocks(budgets.shareOf(group, streams));
      if (x === kernel.x) continue;
      kernel.x = x;
      this.#changed.add(kernel);
    }
  }

  /** Puts the graph on the launch stream, between copies of what it cannot reach. */
  #issueAround(substitutes: readonly GpuSubstitute[]): void {
    const copied = substitutes.filter((each) => this.#substitution.copies(each));
    const copy = (to: GpuBuffer, from: GpuBuffer, bytes: number) => {
      if (bytes === 0) return;
      this.#driver.copyOnDevice(to.address, from.address, bytes, this.#launchStream);
    };
    runBetweenCopies(copied, copy, () => this.issue());
  }
}
