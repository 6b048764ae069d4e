/**
 * What an operator sees of the machine when it runs on a worker: device memory
 * through typed views, the kernels, and a way to say that its input is at fault.
 */

import type { Kernels } from "./kernels.ts";
import {
  COST,
  FAULT,
  FAULT_CODE,
  FAULT_INDEX,
  FAULT_OPERATOR,
  FAULT_ROW,
  FAULT_VALUE,
} from "./program.ts";

/** Estimated costs are in units of 100 ns. */
export const COST_UNIT_NANOSECONDS = 100;

/**
 * Tiles are cut to about this estimated time: long beside the one or two microseconds
 * that handing out a tile costs, short beside an operator, so that the workers finish
 * together.
 */
export const TILE_NANOSECONDS = 80_000;

/**
 * What estimates count on for one worker, somewhat below what a current server core
 * reaches. They decide how tiles are cut and charged, never what is computed.
 */
export const BYTES_PER_NANOSECOND = 8;
export const MULTIPLY_ADDS_PER_NANOSECOND = 12;

export class TileContext {
  readonly kernels: Kernels;
  readonly workers: number;
  /** Byte address of this worker's scratch memory. */
  readonly scratch: number;
  readonly #memory: WebAssembly.Memory;
  i32!: Int32Array;
  f32!: Float32Array;
  f64!: Float64Array;
  /** First word of the running program. */
  program = 0;

  constructor(kernels: Kernels, memory: WebAssembly.Memory, workers: number, scratch: number) {
    this.kernels = kernels;
    this.#memory = memory;
    this.workers = workers;
    this.scratch = scratch;
    this.refresh(0);
  }

  /** Brings the views up to a memory that the main thread may have grown. */
  refresh(byteLength: number): void {
    let buffer = this.#memory.buffer;
    if (this.i32?.buffer === buffer && buffer.byteLength >= byteLength) return;
    // Another thread's growth reaches this thread's memory object late; asking for no pages hurries it.
    while (buffer.byteLength < byteLength) {
      this.#memory.grow(0);
      buffer = this.#memory.buffer;
    }
    this.i32 = new Int32Array(buffer);
    this.f32 = new Float32Array(buffer);
    this.f64 = new Float64Array(buffer);
  }

  /** Sets the estimated time of each tile of an operator that is being opened. */
  estimate(operator: number, nanoseconds: number): void {
    this.i32[operator + COST] = Math.max(1, Math.round(nanoseconds / COST_UNIT_NANOSECONDS));
  }

  /** Reports a row of logits; the first row wins, whoever reports it. */
  faultRow(row: number): void {
    const word = this.program + FAULT_ROW;
    let first = Atomics.load(this.i32, word);
    while (row < first) {
      const seen = Atomics.compareExchange(this.i32, word, first, row);
      if (seen === first) break;
      first = seen;
    }
    Atomics.store(this.i32, this.program + FAULT, FAULT_CODE.logits);
  }

  /** Reports a value found in a buffer; the first report wins. */
  fault(kind: keyof typeof FAULT_CODE, operator: number, value: number, index: number): void {
    const { i32, program } = this;
    if (Atomics.compareExchange(i32, program + FAULT, 0, FAULT_CODE[kind]) !== 0) return;
    i32[program + FAULT_OPERATOR] = operator - program;
    i32[program + FAULT_VALUE] = value;
    i32[program + FAULT_INDEX] = index;
  }

  /**
   * Whether `count` integers from index `first` on are all within least to below - 1, so that the
   * kernels can follow them; reports the first that is not.
   */
  within(
    kind: keyof typeof FAULT_CODE,
    operator: number,
    address: number,
    first: number,
    count: number,
    least: number,
    below: number,
  ): boolean {
    const base = address >>> 2;
    for (let i = first; i < first + count; i++) {
      const value = this.i32[base + i] as number;
      if (value < least || value >= below) {
        this.fault(kind, operator, value, i);
        return false;
      }
    }
    return true;
  }

  /** The batch's token count from device memory; 0 and a fault if there are more than the operator is for. */
  tokens(operator: number, address: number, mostTokens: number): number {
    const tokens = this.i32[address >>> 2] as number;
    if (tokens >= 0 && tokens <= mostTokens) return tokens;
    this.fault("tokens", operator, tokens, mostTokens);
    return 0;
  }
}

/** An operator as the workers run it. */
export interface TileOperator {
  /**
   * Called once, by one worker, when all predecessors are finished: reads what it
   * needs of their results and says how many tiles there are. May keep values in
   * the operator's arguments for `run`.
   */
  open(context: TileContext, operator: number): number;
  /** Runs one tile. Tiles run in any order, on any worker, at the same time. */
  run(context: TileContext, operator: number, tile: number): void;
}
