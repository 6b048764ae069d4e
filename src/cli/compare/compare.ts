/** What moved between two results: every contender of every cell that both hold, judged by noise.ts. */

import { InvalidArgumentError } from "../../errors.ts";
import { median } from "../statistics.ts";
import { evenRounds, timeOf } from "./batches.ts";
import {
  blockMedians,
  LEAST_NOISE,
  leastProbability,
  rankTest,
  SIGNIFICANCE,
  spreadOf,
} from "./noise.ts";
import type { MeasuredCell, Results, Series } from "./results.ts";

/** `too few samples`: beyond the noise, but there are not enough of them to rule out chance. */
export type Verdict = "faster" | "slower" | "unchanged" | "too few samples";

export interface Change {
  readonly cell: string;
  readonly contender: string;
  /** Times of a step, in microseconds. */
  readonly a: number;
  readonly b: number;
  /** Of B against A, as a share; below 0 B is faster. */
  readonly change: number;
  /** Changes up to this share are noise. */
  readonly noise: number;
  /** Of chance alone, by the rank test. */
  readonly probability: number;
  readonly verdict: Verdict;
}

export interface Unmatched {
  readonly cell: string;
  /** Absent where the whole cell is in one file only. */
  readonly contender?: string;
  readonly onlyIn: "A" | "B";
  /** Why it was not measured in the other file, if that file says. */
  readonly reason?: string;
}

type Source = Omit<Results, "cells" | "failedCells">;

export interface Comparison {
  readonly command: "bench --compare";
  readonly a: Source;
  readonly b: Source;
  /** What speaks against comparing the two. */
  readonly warnings: readonly string[];
  readonly changes: readonly Change[];
  readonly unmatched: readonly Unmatched[];
  readonly counts: Readonly<Record<Verdict, number>>;
}

/** @throws InvalidArgumentError if the two measure different things */
export function compare(a: Results, b: Results): Comparison {
  if (a.kind !== b.kind) {
    throw new InvalidArgumentError(
      `One result is of "nexus bench" and the other of the benchmark of peers; they time different things. Compare two of a kind.`,
    );
  }
  const usual = [usualNoise(a), usualNoise(b)];
  const changes: Change[] = [];
  const unmatched: Unmatched[] = [];
  for (const [cellA, cellB] of pairs(a.cells, b.cells, ({ name }) => name)) {
    const cell = (cellA ?? cellB)?.name as string;
    if (cellA === undefined || cellB === undefined) {
      const [onlyIn, other] = cellA === undefined ? (["B", a] as const) : (["A", b] as const);
      const failure = other.failedCells.find(({ name }) => name === cell);
      unmatched.push({ cell, onlyIn, ...(failure && { reason: failure.reason }) });
      continue;
    }
    const repeats = [...usual, cellA.noise ?? 0, cellB.noise ?? 0];
    for (const [one, two] of pairs(cellA.series, cellB.series, ({ contender }) => contender)) {
      if (one && two) changes.push({ cell, ...changeOf(one, two, Math.max(...repeats)) });
      else if (one) unmatched.push({ cell, ...missing(one, "A", cellB) });
      else if (two) unmatched.push({ cell, ...missing(two, "B", cellA) });
    }
  }
  const count = (verdict: Verdict) => changes.filter((each) => each.verdict === verdict).length;
  return {
    command: "bench --compare",
    a: sourceOf(a),
    b: sourceOf(b),
    warnings: warningsOf(a, b),
    changes,
    unmatched,
    counts: {
      faster: count("faster"),
      slower: count("slower"),
      unchanged: count("unchanged"),
      "too few samples": count("too few samples"),
    },
  };
}

function sourceOf({ cells: _, failedCells: __, ...source }: Results): Source {
  return source;
}

/** Noise of the median cell: what a single cell shows may be small by luck. */
function usualNoise({ cells }: Results): number {
  const known = cells.flatMap(({ noise }) => noise ?? []);
  return known.length === 0 ? 0 : median(known);
}

function changeOf(a: Series, b: Series, repeatNoise: number): Omit<Change, "cell"> {
  const [blocksA, blocksB] = [blockMedians(evenRounds(a)), blockMedians(evenRounds(b))];
  const noise = Math.max(LEAST_NOISE, repeatNoise, spreadOf(blocksA), spreadOf(blocksB));
  const [timeA, timeB] = [timeOf(a), timeOf(b)];
  const change = timeB / timeA - 1;
  const probability = rankTest(blocksA, blocksB);
  const enough = leastProbability(blocksA.length, blocksB.length) <= SIGNIFICANCE;
  const verdict =
    Math.abs(change) <= noise
      ? "unchanged"
      : !enough
        ? "too few samples"
        : probability > SIGNIFICANCE
          ? "unchanged"
          : change < 0
            ? "faster"
            : "slower";
  return { contender: a.contender, a: timeA, b: timeB, change, noise, probability, verdict };
}

function missing({ contender }: Series, onlyIn: "A" | "B", other: MeasuredCell) {
  const failure = other.failed.find((each) => each.contender === contender);
  return { contender, onlyIn, ...(failure && { reason: failure.reason }) };
}

function warningsOf(a: Results, b: Results): string[] {
  const differs = (what: string, of: (results: Results) => string | number) =>
    of(a) === of(b) ? [] : [`${what}: ${of(a)} in A, ${of(b)} in B`];
  return [
    ...differs("different devices", ({ device }) => device),
    ...differs(a.kind === "peers" ? "different commits" : "different versions", (each) =>
      String(each.version),
    ),
    ...differs("different seeds, so different routings", ({ seed }) => seed),
    ...differs("weights kept in different ways, packWeights", ({ packWeights }) => packWeights),
  ];
}

/** Every value of either list, with its like in the other: A's order, then what only B has. */
function pairs<T>(
  a: readonly T[],
  b: readonly T[],
  keyOf: (value: T) => string,
): (readonly [T | undefined, T | undefined])[] {
  const inB = new Map(b.map((value) => [keyOf(value), value]));
  const inA = new Set(a.map(keyOf));
  return [
    ...a.map((value) => [value, inB.get(keyOf(value))] as const),
    ...b.filter((value) => !inA.has(keyOf(value))).map((value) => [undefined, value] as const),
  ];
}
