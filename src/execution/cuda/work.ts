/**
 * Work: what an operator becomes before it becomes calls of the driver. A kernel
 * whose arguments are written down, a few words to clear, a few bytes to bring to
 * the host. The recorder keeps work in order and the issuer hands it to streams,
 * eagerly or in a capture; neither knows what an operator is.
 */

import type { Resource } from "../operator-checks.ts";
import type { AccessWindow } from "./driver/driver.ts";
import type { KernelValues } from "./launch/launch.ts";

/** A kernel launch: everything but the stream and the width of the grid is in place. */
export interface KernelWork {
  readonly kind: "kernel";
  readonly name: string;
  readonly launch: PreparedLaunch;
  /**
   * Blocks along x for so many multiprocessors. A persistent kernel's grid follows the budget of its
   * stream; the others' does not depend on it.
   */
  blocks(multiprocessors: number): number;
  /** Whether `blocks` does depend on it. */
  readonly persistent: boolean;
  /** Whether it may start beside the end of this kernel in front of it on the stream, with so many blocks along x. */
  early(x: number, front: KernelWork): boolean;
  /** Whether it is a product: what follows it early finds everything but its rows complete. */
  readonly product: boolean;
  /** Charged to the budget of its stream's group; otherwise the whole device is its own: nothing runs beside it. */
  readonly budgeted: boolean;
  /** Weights it reads, which a cache budget is for. */
  readonly weights?: MemoryRange;
  /** Address of rows that it reads through a tensor map. */
  readonly mapped?: bigint;
  /** Addresses of host mirrors that it brings up to date. */
  readonly mirrors?: readonly bigint[];
  /** If this is tidying up: the parameters by which a kernel that tidies up does it along with its own work. */
  readonly tidying?: KernelValues;
  /** Whether it does all of its operator's tidying in any case: what tidies after it waits for it. */
  readonly tidies?: boolean;
  /** Whether it tidies up along with its own work; for what is two kernels in front of it or more. */
  readonly tidiesUp?: boolean;
  /** Whether it can do its own operator's tidying, by the same parameters; what comes after it would wait for that. */
  readonly tidiesOwn?: boolean;
}

/** Bytes of device memory that lie together. */
export interface MemoryRange {
  readonly address: bigint;
  readonly bytes: number;
}

/** A launch in the argument arena. */
export interface PreparedLaunch {
  /** Address of its CUlaunchConfig. */
  readonly config: bigint;
  readonly fn: bigint;
  /** Address of the table of parameter addresses. */
  readonly params: bigint;
  setStream(stream: bigint): void;
  setBlocks(x: number): void;
  /** Other values for these parameters. */
  setValues(values: KernelValues): void;
  /** Its parameters that are pointers, with their names. */
  pointers(): readonly (readonly [string, bigint])[];
  /** What it reads of the range stays in the L2 longest; null: no such wish. */
  setWindow(window: AccessWindow | null): void;
  /** Whether it may start while the kernel in front of it on the stream runs. */
  setDependent(dependent: boolean): void;
  /** Grid as last set. */
  readonly grid: { readonly x: number; readonly y: number; readonly z: number };
}

/** Sets 32-bit words. */
export interface FillWork {
  readonly kind: "fill";
  readonly address: bigint;
  readonly value: number;
  readonly words: number;
}

/** Copies within device memory. */
export interface CopyWork {
  readonly kind: "copy";
  readonly target: bigint;
  readonly source: bigint;
  readonly bytes: number;
}

/** Copies device memory to page-locked host memory. */
export interface MirrorWork {
  readonly kind: "mirror";
  readonly target: bigint;
  readonly source: bigint;
  readonly bytes: number;
}

export type Work = KernelWork | FillWork | CopyWork | MirrorWork;

/** An operator whose arguments are checked and written down. */
export interface EncodedOperator {
  /** In order, on the operator's stream. */
  readonly work: readonly Work[];
  /**
   * After `work`, but beside whatever follows on the stream; done when the launch is. Housekeeping that
   * nothing in the step waits for: clearing scratch memory for the next, bringing counts to the host.
   */
  readonly beside: readonly Work[];
  /** Whether it must wait for the `beside` of earlier operators of the same launch. */
  readonly afterBeside: boolean;
  readonly resources: readonly Resource[];
}
