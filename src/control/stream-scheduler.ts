/**
 * Which stream each expert runs on. The plan has put experts on slices; here
 * the streams (lanes) are divided among these slices, and every slice's experts
 * are spread over its lanes.
 *
 * How lanes are divided and which go first is part of a captured graph and
 * changes rarely; which expert is on which lane is read anew by every launch and
 * may change with every plan. Nothing here runs anything.
 *
 * Nobody starves. Within a step every expert has a lane, and a step is over only
 * when all lanes are. Across steps the order of the slices ages: a slice that
 * holds experts is put first at least once in any `MAX_WAIT` assignments.
 */

import { shown } from "../errors/wording.ts";
import { InvalidArgumentError } from "../errors.ts";
import { type Fields, requireFields, requireObject } from "../execution/checks.ts";
import { slicesWithoutLane } from "./lane-budgets.ts";
import {
  EXPERT_SLICE_IDS,
  type ExpertLoad,
  type ExpertSliceId,
  type Plan,
  requirePlan,
  type SliceId,
} from "./plan.ts";
import { apportion } from "./slices/apportion.ts";

const DEFAULT_STREAMS = 8;

/** CUDA serves no more hardware queues than 32, and per lane a graph has an operator for every product. */
const MAX_STREAMS = 64;

/**
 * Assignments in which a slice that holds experts is put first at least once.
 * Each order of the slices is a graph of its own, so the order is changed by a
 * jump to the front and back, which makes three orders at most, and seldom.
 */
export const MAX_WAIT = 32;

/** As many as may fall due together: with one jump an assignment, none of them is late. */
const JUMP_AT = MAX_WAIT - EXPERT_SLICE_IDS.length;

/** A single lane serves all slices one after the other: which these are, and in what order, makes no other graph. */
const SINGLE_LANE_KEY = "single";

/** What an expert costs beside its tokens, in tokens: having none expected does not mean that none come. */
const BASE_COST = 1;

/** Which expert is on which stream, as a plain value. */
export interface StreamAssignment {
  /** Number of lanes; each is a stream. */
  readonly streams: number;
  /** Slice whose budget each lane is charged to. */
  readonly sliceOfLane: readonly SliceId[];
  /** Slices whose experts each lane takes: several only where there are fewer lanes than slices with experts. */
  readonly slicesOfLane: readonly (readonly SliceId[])[];
  /** Higher goes first. */
  readonly priorityOfLane: readonly number[];
  /** Experts of each lane in the order they are meant to run, the busiest first. */
  readonly expertsOfLane: readonly (readonly number[])[];
  /** int32 [experts]: lane of each expert. */
  readonly laneOf: Int32Array;
  /** Same string, same lanes with the same priorities: the part of a graph's key that this decides. */
  readonly laneKey: string;
  /** What is worth knowing about the division, in words. */
  readonly note: string;
}

/** How many streams there are. */
export interface StreamSchedulerOptions {
  /** Number of lanes, 1 to 64; default 8. */
  readonly streams?: number;
}

const OPTIONS: Fields<StreamSchedulerOptions> = { streams: true };

/** The slices of each lane. */
type Layout = readonly (readonly ExpertSliceId[])[];

/** Spreads a plan's experts over streams, balanced by their tokens. */
export class StreamScheduler {
  readonly streams: number;
  #layout: Layout | undefined;
  /** Assignments since a slice was last put first. */
  readonly #waits = { A: 0, B: 0, C: 0 };

  /** @throws InvalidArgumentError unless `streams` is a whole number from 1 to 64 */
  constructor(options: StreamSchedulerOptions = {}) {
    requireFields(options, "options", "an object, or left out", OPTIONS);
    const { streams = DEFAULT_STREAMS } = options;
    if (!Number.isInteger(streams) || streams < 1 || streams > MAX_STREAMS) {
      throw new InvalidArgumentError(
        `streams is ${shown(streams)}; it must be a whole number from 1 to ${MAX_STREAMS}.`,
      );
    }
    this.streams = streams;
  }

  /**
   * Assigns every expert of a plan to a lane of its slice.
   *
   * @param expectedLoad tokens per expert that the lanes are balanced for; default: the plan's own load
   * @throws InvalidArgumentError if the load is of another number of experts
   */
  assign(plan: Plan, expectedLoad?: ExpertLoad): StreamAssignment {
    requirePlan(plan);
    const load = expectedLoad === undefined ? plan.load : expectedLoad;
    requireObject(load, "expectedLoad", "an object with counts, or left out");
    const { counts } = load;
    const holders = EXPERT_SLICE_IDS.filter((id) => plan.slices[id].experts.length > 0);
    const experts = holders.reduce((sum, id) => sum + plan.slices[id].experts.length, 0);
    if (!(counts instanceof Int32Array) || counts.length !== experts) {
      throw new InvalidArgumentError(
        `The expected load has counts for ${shown(counts?.length)} experts but the plan has ${experts}.`,
      );
    }
    const lanes = plan.undivided ? 1 : this.streams;
    const layout = this.#layOut(plan, holders, lanes);
    const order = this.#order(plan, holders);
    const rank = (id: ExpertSliceId) => order.indexOf(id);
    const slicesOfLane = layout.map((ids) => [...ids].sort((a, b) => rank(a) - rank(b)));
    const top = Math.max(...EXPERT_SLICE_IDS.map((id) => plan.slices[id].priority));
    const priorityOfLane = slicesOfLane.map((ids) =>
      Math.max(
        ...ids.map((id) => (id === order[0] ? top : Math.min(plan.slices[id].priority, top - 1))),
      ),
    );
    const sliceOfLane = slicesOfLane.map((ids) => ids[0] as SliceId);
    const { laneOf, expertsOfLane } = balance(plan, order, slicesOfLane, counts);
    return Object.freeze({
      streams: lanes,
      sliceOfLane,
      slicesOfLane,
      priorityOfLane,
      expertsOfLane,
      laneOf,
      laneKey:
        lanes === 1
          ? SINGLE_LANE_KEY
          : slicesOfLane.map((ids, lane) => `${ids.join("+")}@${priorityOfLane[lane]}`).join(" "),
      note: noteOn(slicesOfLane, holders, order) + noteOnCache(plan, sliceOfLane),
    });
  }

  /**
   * One lane at least for each slice that holds experts, or one for all of an undivided device. The division before is kept while no slice is more than a lane
   * off its due, nor has half of it or less.
   */
  #layOut(plan: Plan, holders: readonly ExpertSliceId[], lanes: number): Layout {
    // The division before is kept for when there is one again.
    if (lanes === 1) return [holders];
    if (lanes < holders.length) {
      // The hottest have lanes of their own, the others share the last.
      const own = holders.slice(0, lanes - 1).map((id) => [id]);
      this.#layout = [...own, holders.slice(lanes - 1)];
      return this.#layout;
    }
    const due = this.#due(plan, holders);
    const held = this.#layout ?? [];
    const near = holders.every((id, i) => {
      const lanes = held.filter((ids) => ids.length === 1 && ids[0] === id).length;
      return Math.abs(lanes - (due[i] as number)) <= 1 && lanes * 2 > (due[i] as number);
    });
    if (near && held.length === this.streams) return held;
    this.#layout = holders.flatMap((id, i) => new Array<ExpertSliceId[]>(due[i] ?? 0).fill([id]));
    return this.#layout;
  }

  /** Lanes of each slice by its compute units; no more than it has experts, as the others would stand empty. */
  #due(plan: Plan, holders: readonly ExpertSliceId[]): number[] {
    const targets: (number | undefined)[] = holders.map(() => undefined);
    for (;;) {
      const due = apportion(
        this.streams,
        holders.map((id, i) => ({
          weight: plan.slices[id].budget.computeUnits,
          floor: 1,
          target: targets[i],
          priority: plan.slices[id].priority,
        })),
      );
      const full = holders.findIndex(
        (id, i) => targets[i] === undefined && (due[i] as number) > plan.slices[id].experts.length,
      );
      if (full === -1) {
        // With more lanes than experts some are empty whoever has them.
        const spare = this.streams - due.reduce((sum, lanes) => sum + lanes, 0);
        due[0] = (due[0] as number) + spare;
        return due;
      }
      targets[full] = plan.slices[holders[full] as ExpertSliceId].experts.length;
    }
  }

  /** The slices that hold experts, the one that goes first in front; the others by priority. */
  #order(plan: Plan, holders: readonly ExpertSliceId[]): ExpertSliceId[] {
    const order = [...holders].sort((a, b) => plan.slices[b].priority - plan.slices[a].priority);
    const longest = order.reduce((a, b) => (this.#waits[b] > this.#waits[a] ? b : a));
    if (this.#waits[longest] >= JUMP_AT) {
      order.splice(order.indexOf(longest), 1);
      order.unshift(longest);
    }
    for (const id of EXPERT_SLICE_IDS) this.#waits[id]++;
    this.#waits[order[0] as ExpertSliceId] = 0;
    return order;
  }
}

/** Spreads each slice's experts over its lanes: longest processing time first, each to the lane with the least so far. */
function balance(
  plan: Plan,
  order: readonly ExpertSliceId[],
  slicesOfLane: Layout,
  counts: Int32Array,
): { readonly laneOf: Int32Array; readonly expertsOfLane: number[][] } {
  const laneOf = new Int32Array(counts.length);
  const expertsOfLane: number[][] = slicesOfLane.map(() => []);
  const costs = new Float64Array(slicesOfLane.length);
  for (const id of order) {
    const lanes = slicesOfLane.flatMap((ids, lane) => (ids.includes(id) ? [lane] : []));
    for (const expert of busiestFirst(plan.slices[id].experts, counts)) {
      let lane = lanes[0] as number;
      for (const other of lanes) {
        if ((costs[other] as number) < (costs[lane] as number)) lane = other;
      }
      laneOf[expert] = lane;
      expertsOfLane[lane]?.push(expert);
      costs[lane] = (costs[lane] as number) + (counts[expert] as number) + BASE_COST;
    }
  }
  return { laneOf, expertsOfLane };
}

/**
 * Of equally busy ones the first in front. Sorted as numbers that hold count and place, and so without a function that
 * compares: half the time, in a plan that is made between two steps.
 */
function busiestFirst(experts: readonly number[], counts: Int32Array): number[] {
  const places = experts.length;
  const ranks = new Float64Array(places);
  for (let place = 0; place < places; place++) {
    ranks[place] = place - places * (counts[experts[place] as number] as number);
  }
  ranks.sort();
  const sorted = new Array<number>(places);
  for (let i = 0; i < places; i++) {
    // The place, whatever the sign of the count.
    const place = (((ranks[i] as number) % places) + places) % places;
    sorted[i] = experts[place] as number;
  }
  return sorted;
}

function noteOn(
  slicesOfLane: Layout,
  holders: readonly ExpertSliceId[],
  order: readonly ExpertSliceId[],
): string {
  if (slicesOfLane.length === 1) {
    return `A single lane: slices ${holders.join(", ")} take turns with the whole device.`;
  }
  const shared = slicesOfLane.findIndex((ids) => ids.length > 1);
  if (shared !== -1) {
    const names = slicesOfLane[shared]?.join(" and ");
    return `There are ${holders.length} slices with experts but ${slicesOfLane.length} lanes, so slices ${names} share lane ${shared}; it is charged to the first.`;
  }
  const lanes = holders.map((id) => {
    const count = slicesOfLane.filter((ids) => ids[0] === id).length;
    return `${count} for slice ${id}`;
  });
  return `Lanes: ${lanes.join(", ")}; slice ${order[0]} goes first.`;
}

/** What becomes of cache that was reserved for slices without a lane of their own. */
function noteOnCache({ reservedCacheBytes }: Plan, sliceOfLane: readonly SliceId[]): string {
  const lost = slicesWithoutLane(sliceOfLane).filter((id) => (reservedCacheBytes?.[id] ?? 0) > 0);
  if (lost.length === 0) return "";
  return ` Cache reserved for ${lost.join(", ")} is not set aside: no lane reads weights for that slice alone.`;
}
