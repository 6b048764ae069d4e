/**
 * What people asked for by hand: minimum budgets, target sizes, pinned experts.
 *
 * Each demand is checked against the device and what is reserved before it is
 * taken: one that cannot be met is refused and changes nothing. Target sizes are
 * not checked against each other: they are changed one by one, and priorities
 * decide while they do not all fit. What is taken here holds from the next plan
 * on; plans already made are not touched.
 */

import { shown } from "../../errors/wording.ts";
import { InvalidArgumentError } from "../../errors.ts";
import {
  BUDGETED_SLICE_IDS,
  type BudgetedSliceId,
  EXPERT_SLICE_IDS,
  type ExpertSliceId,
} from "../plan.ts";
import type { PlanningDevice } from "./planning-device.ts";

/** What a slice keeps, whether it uses it or not. */
export interface Reservation {
  /** Compute units the slice gets at least, a multiple of the granularity; default 0. */
  readonly computeUnits?: number;
  /** Bytes of cache the slice gets at least; default 0. */
  readonly cacheBytes?: number;
}

export class Demands {
  readonly #device: PlanningDevice;
  readonly #quanta: number;
  readonly #maxExperts: Readonly<Partial<Record<ExpertSliceId, number>>>;
  readonly #reserved = { A: 0, B: 0, C: 0, D: 0 };
  readonly #reservedCache = { A: 0, B: 0, C: 0, D: 0 };
  readonly #targets: Partial<Record<BudgetedSliceId, number>> = {};
  readonly #pins = new Map<number, ExpertSliceId>();
  #version = 0;

  constructor(
    device: PlanningDevice,
    quanta: number,
    maxExperts: Readonly<Partial<Record<ExpertSliceId, number>>>,
  ) {
    this.#device = device;
    this.#quanta = quanta;
    this.#maxExperts = maxExperts;
  }

  /** Counts up with every demand on budgets. */
  get version(): number {
    return this.#version;
  }

  get pins(): ReadonlyMap<number, ExpertSliceId> {
    return this.#pins;
  }

  /** Whether anybody has asked for compute units or cache. */
  get ofBudgets(): boolean {
    return BUDGETED_SLICE_IDS.some(
      (slice) =>
        this.#reserved[slice] > 0 ||
        this.#reservedCache[slice] > 0 ||
        this.#targets[slice] !== undefined,
    );
  }

  /** Quanta a slice has reserved. */
  reserved(slice: BudgetedSliceId): number {
    return this.#reserved[slice];
  }

  /** Bytes of cache reserved, by slice. */
  get reservedCache(): Readonly<Record<BudgetedSliceId, number>> {
    return this.#reservedCache;
  }

  /** Quanta a slice was resized to. */
  target(slice: BudgetedSliceId): number | undefined {
    return this.#targets[slice];
  }

  reserve(slice: BudgetedSliceId, { computeUnits = 0, cacheBytes = 0 }: Reservation): void {
    checkSlice(slice, BUDGETED_SLICE_IDS, "has no budget");
    const quanta = this.#toQuanta(computeUnits, `reserve("${slice}")`);
    const others = this.#leastForOthers(slice);
    if (Math.max(1, quanta) + others > this.#quanta) {
      throw new InvalidArgumentError(
        `Slice ${slice} cannot reserve ${computeUnits} compute units: the other slices keep at least ${this.#units(others)}, and ${this.#device.name} has ${this.#units(this.#quanta)}. Reserve ${this.#units(this.#quanta - others)} at most.`,
      );
    }
    const target = this.#targets[slice];
    if (target !== undefined && target < quanta) {
      throw new InvalidArgumentError(
        `Slice ${slice} cannot reserve ${computeUnits} compute units while it is resized to ${this.#units(target)}. Resize it first.`,
      );
    }
    this.#checkCache(slice, cacheBytes);
    this.#reserved[slice] = quanta;
    this.#reservedCache[slice] = cacheBytes;
    this.#version++;
  }

  /** @param computeUnits null: as the policy says */
  resize(slice: BudgetedSliceId, computeUnits: number | null): void {
    checkSlice(slice, BUDGETED_SLICE_IDS, "has no budget");
    if (computeUnits === null) {
      delete this.#targets[slice];
      this.#version++;
      return;
    }
    const quanta = this.#toQuanta(computeUnits, `resize("${slice}")`);
    const least = Math.max(1, this.#reserved[slice]);
    const most = this.#quanta - this.#leastForOthers(slice);
    if (quanta < least || quanta > most) {
      throw new InvalidArgumentError(
        `Slice ${slice} cannot be resized to ${computeUnits} compute units: with what is reserved it can have ${this.#units(least)} to ${this.#units(most)} of the ${this.#units(this.#quanta)} of ${this.#device.name}.`,
      );
    }
    this.#targets[slice] = quanta;
    this.#version++;
  }

  pin(expert: number, slice: ExpertSliceId): void {
    checkExpert(expert);
    checkSlice(slice, EXPERT_SLICE_IDS, "takes no experts by hand");
    let pinned = 1;
    for (const [other, at] of this.#pins) if (other !== expert && at === slice) pinned++;
    const most = this.#maxExperts[slice];
    if (most !== undefined && pinned > most) {
      throw new InvalidArgumentError(
        `Expert ${expert} cannot be pinned to slice ${slice}: ${pinned} pinned experts would be more than the ${most} that maxExperts allows. Release one of them first.`,
      );
    }
    this.#pins.set(expert, slice);
  }

  unpin(expert: number): void {
    checkExpert(expert);
    this.#pins.delete(expert);
  }

  /** @throws InvalidArgumentError if a pinned expert does not exist */
  checkPins(experts: number): void {
    for (const expert of this.#pins.keys()) {
      if (expert >= experts) {
        throw new InvalidArgumentError(
          `Expert ${expert} is pinned, but the load has ${experts} experts. Call release(${expert}).`,
        );
      }
    }
  }

  /** Every slice may hold experts some day, so each counts with one quantum at least. */
  #leastForOthers(slice: BudgetedSliceId): number {
    return BUDGETED_SLICE_IDS.reduce(
      (sum, other) => (other === slice ? sum : sum + Math.max(1, this.#reserved[other])),
      0,
    );
  }

  #checkCache(slice: BudgetedSliceId, bytes: number): void {
    if (!Number.isSafeInteger(bytes) || bytes < 0) {
      throw new InvalidArgumentError(
        `Slice ${slice} cannot reserve ${shown(bytes)} bytes of cache; give a whole number, 0 or more.`,
      );
    }
    if (bytes === 0) return;
    const { cacheBytes, name } = this.#device;
    if (cacheBytes === null) {
      throw new InvalidArgumentError(
        `Slice ${slice} cannot reserve ${bytes} bytes of cache: ${name} does not tell the size of its cache.`,
      );
    }
    let others = 0;
    for (const other of BUDGETED_SLICE_IDS)
      if (other !== slice) others += this.#reservedCache[other];
    if (bytes + others > cacheBytes) {
      throw new InvalidArgumentError(
        `Slice ${slice} cannot reserve ${bytes} bytes of cache: ${others} are reserved for other slices, and ${name} has ${cacheBytes}.`,
      );
    }
  }

  #toQuanta(computeUnits: number, what: string): number {
    // Text would be reckoned with as if it were a number.
    if (typeof computeUnits !== "number") {
      throw new InvalidArgumentError(
        `computeUnits is ${shown(computeUnits)}; it must be a number of compute units.`,
      );
    }
    const granularity = this.#device.computeUnitGranularity;
    const quanta = computeUnits / granularity;
    if (!Number.isSafeInteger(quanta) || quanta < 0) {
      throw new InvalidArgumentError(
        `${what} was given ${computeUnits} compute units; on ${this.#device.name} budgets are multiples of ${granularity}, 0 or more.`,
      );
    }
    return quanta;
  }

  #units(quanta: number): number {
    return quanta * this.#device.computeUnitGranularity;
  }
}

function checkSlice(slice: string, allowed: readonly string[], why: string): void {
  if (!allowed.includes(slice)) {
    throw new InvalidArgumentError(
      `Slice ${shown(slice)} ${why}; choose one of ${allowed.join(", ")}.`,
    );
  }
}

function checkExpert(expert: number): void {
  if (!Number.isInteger(expert) || expert < 0) {
    throw new InvalidArgumentError(`Expert ${shown(expert)} is not an expert index.`);
  }
}
