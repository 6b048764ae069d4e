/**
 * A routed batch: which experts each token goes to, with what weight, and the
 * tokens sorted by expert. A plain value in host memory; on the device the same
 * tables are built anew in every step and never leave it.
 *
 * T tokens, E experts, k = top_k, S = T * k slots; slot = token * k + choice.
 */

import { shown } from "../errors/wording.ts";
import { InvalidArgumentError } from "../errors.ts";
import type { Tensor } from "../tensor.ts";

/** A token that an expert had no room for. */
export interface DroppedSlot {
  readonly token: number;
  /** 0 for the token's best expert, up to k - 1. */
  readonly choice: number;
  readonly expert: number;
}

/** What buckets are made of: their fields, without what follows from these. */
export type BucketTables = Omit<Buckets, "tokens" | "rows" | "dropped" | "tokensOf">;

/** Tokens sorted by expert: what routing gives and experts take. */
export class Buckets {
  /** [T, H]: the hidden states that were routed. */
  readonly hidden!: Tensor;
  readonly experts!: number;
  readonly topK!: number;
  /** int32 [T, k]: expert ids, best first. */
  readonly ids!: Int32Array;
  /** float32 [T, k]: routing weights. */
  readonly weights!: Float32Array;
  /** int32 [E]: tokens routed to each expert, dropped ones included. */
  readonly counts!: Int32Array;
  /** int32 [E + 1]: the rows of expert e are offsets[e] to offsets[e + 1] - 1. */
  readonly offsets!: Int32Array;
  /** int32 [rows]: the slot of each row; ascending within an expert. */
  readonly order!: Int32Array;
  /** int32 [S]: the row of each slot, or -1 where it was dropped. */
  readonly inverse!: Int32Array;
  /** The capacity factor the batch was routed with, if there was one. */
  readonly capacityFactor?: number | undefined;

  /** @internal Router.route() gives them. */
  constructor(tables: BucketTables) {
    Object.assign(this, tables);
  }

  /** Number of tokens in the batch. */
  get tokens(): number {
    return this.ids.length / this.topK;
  }

  /** Rows the experts compute: T * k less the dropped slots. */
  get rows(): number {
    return this.offsets[this.experts] as number;
  }

  /** The tokens an expert computes, ascending. @throws InvalidArgumentError if there is no such expert */
  tokensOf(expert: number): Int32Array {
    if (!Number.isInteger(expert) || expert < 0 || expert >= this.experts) {
      throw new InvalidArgumentError(
        `There is no expert ${shown(expert)} in these buckets; they have experts 0 to ${this.experts - 1}.`,
      );
    }
    const from = this.offsets[expert] as number;
    const to = this.offsets[expert + 1] as number;
    return this.order.slice(from, to).map((slot) => Math.floor(slot / this.topK));
  }

  /** Every slot that was dropped for want of capacity, in slot order; empty without a capacity factor. */
  get dropped(): readonly DroppedSlot[] {
    return droppedSlots(this.inverse, this.ids, this.topK);
  }
}

/** The slots that have no row. */
export function droppedSlots(
  inverse: Int32Array,
  ids: Int32Array,
  topK: number,
): readonly DroppedSlot[] {
  const dropped: DroppedSlot[] = [];
  inverse.forEach((row, slot) => {
    if (row >= 0) return;
    dropped.push({
      token: Math.floor(slot / topK),
      choice: slot % topK,
      expert: ids[slot] as number,
    });
  });
  return dropped;
}
