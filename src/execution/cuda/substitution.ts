/**
 * Other buffers in the place of those that a graph was captured with: where its kernels have their addresses as
 * parameters, and which addresses these are at present. Parameters are changed where launches are written down; the
 * graph (graph.ts) hands them to its nodes. What has the address otherwise, in a tensor map or a copy, keeps it: there
 * bytes are copied, before the graph runs or after it.
 */

import { InvalidArgumentError } from "../../errors.ts";
import type { Substitute } from "../device.ts";
import type { Resource } from "../operator-checks.ts";
import { checkedSubstitutes, type OwnSubstitute } from "../substitute-checks.ts";
import { type BufferOwner, GpuBuffer } from "./memory.ts";
import { type Recording, worksOf } from "./recorder.ts";
import type { KernelWork, Work } from "./work.ts";

export type GpuSubstitute = OwnSubstitute<GpuBuffer>;

/** A kernel of a graph. */
export interface SubstitutedKernel {
  readonly work: KernelWork;
  /** Its parameters that are pointers, as they were captured. */
  readonly pointers: readonly (readonly [string, bigint])[];
}

/** A parameter of a kernel that is an address in a buffer. */
interface Place<Node> {
  readonly node: Node;
  readonly parameter: string;
  /** From the buffer's beginning. */
  readonly offset: bigint;
}

/** A buffer that some launch had another one in the place of. */
interface Replaced<Node> {
  readonly buffer: GpuBuffer;
  /** Undefined where bytes are copied. */
  readonly places: readonly Place<Node>[] | undefined;
  /** Where its parameters point at present. */
  address: bigint;
}

/** The substitutes of one graph. @typeParam Node what the graph knows of a kernel */
export class Substitution<Node extends SubstitutedKernel> {
  readonly #recording: Recording;
  readonly #nodes: readonly Node[];
  readonly #fixed: boolean;
  readonly #replaced = new Map<GpuBuffer, Replaced<Node>>();

  /** @param fixed whether parameters cannot be changed at all */
  constructor(recording: Recording, nodes: readonly Node[], fixed: boolean) {
    this.#recording = recording;
    this.#nodes = nodes;
    this.#fixed = fixed;
  }

  /**
   * Writes down where kernels find the buffers of the next launch.
   *
   * @param substitutes those of this launch; all other buffers are the graph's own again
   * @param changed is given the kernels whose parameters are others now
   */
  apply(substitutes: readonly GpuSubstitute[], changed: Set<Node>): void {
    for (const { buffer } of substitutes) {
      if (!this.#replaced.has(buffer)) this.#replaced.set(buffer, this.#find(buffer));
    }
    for (const replaced of this.#replaced.values()) {
      const substitute = substitutes.find(({ buffer }) => buffer === replaced.buffer);
      const { address } = substitute?.by ?? replaced.buffer;
      if (replaced.places === undefined || replaced.address === address) continue;
      for (const { node, parameter, offset } of replaced.places) {
        node.work.launch.setValues({ [parameter]: address + offset });
        changed.add(node);
      }
      replaced.address = address;
    }
  }

  /** Whether a substitute's bytes have to be copied. */
  copies({ buffer }: GpuSubstitute): boolean {
    return this.#replaced.get(buffer)?.places === undefined;
  }

  #find(buffer: GpuBuffer): Replaced<Node> {
    const { address } = buffer;
    const places: Place<Node>[] = [];
    for (const node of this.#nodes) {
      for (const [parameter, value] of node.pointers) {
        if (isIn(buffer, value)) places.push({ node, parameter, offset: value - address });
      }
    }
    const within = new Set<Work>(this.#nodes.map(({ work }) => work));
    const fixed =
      this.#fixed ||
      worksOf(this.#recording).some((work) => holds(work, buffer, !within.has(work)));
    return { buffer, address, places: fixed ? undefined : places };
  }
}

/**
 * @param used what the graph was captured with
 * @throws InvalidArgumentError, DisposedError unless they can stand in for buffers of a graph of this device
 */
export function requireSubstitutes(
  substitutes: readonly Substitute[],
  used: readonly Resource[],
  owner: BufferOwner,
): readonly GpuSubstitute[] {
  const checked = checkedSubstitutes(
    substitutes,
    used,
    (buffer): buffer is GpuBuffer => buffer instanceof GpuBuffer && buffer.owner === owner,
  );
  for (const { buffer, by, access } of checked) {
    const mirrored = [buffer, ...(access === "write" ? [by] : [])].find(({ mirror }) => mirror);
    if (mirrored === undefined) continue;
    throw new InvalidArgumentError(
      `Buffer "${mirrored.label}" is mirrored: no other can stand in for it, nor it for one that is written.`,
    );
  }
  return checked;
}

/** Whether this work has the buffer's address where it cannot be changed. @param beside of a kernel: whether it is no node that is known */
function holds(work: Work, buffer: GpuBuffer, beside: boolean): boolean {
  switch (work.kind) {
    case "kernel":
      if (work.mapped !== undefined && isIn(buffer, work.mapped)) return true;
      return beside && work.launch.pointers().some(([, value]) => isIn(buffer, value));
    case "fill":
      return isIn(buffer, work.address);
    case "copy":
      return isIn(buffer, work.target) || isIn(buffer, work.source);
    case "mirror":
      return isIn(buffer, work.source);
  }
}

function isIn({ address, byteLength }: GpuBuffer, value: bigint): boolean {
  return value >= address && value < address + BigInt(byteLength);
}
