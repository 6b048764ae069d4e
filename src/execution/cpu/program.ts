/**
 * A program: operators and what they wait for, as an array of 32-bit words that
 * every worker can walk. It is built once, for a captured graph or for what was
 * enqueued since the last synchronize(), as an image in host memory. To run it,
 * the image is copied into device memory as it is: counters, edges and arguments
 * are all in place, and nothing is planned, allocated or reset. Programs run one
 * at a time, so one place in device memory serves them all.
 *
 * Layout, in words: a header; one bit for each operator, set while the operator
 * has tiles to hand out; the operators, of OPERATOR_WORDS each; the lists of
 * successors. Operator 0 is a starting gun with a single empty tile; whatever
 * waits for nothing else waits for it. So the workers themselves open the first
 * real operators, in the way they open any other.
 *
 * How a program is walked is in scheduler.ts; what arguments mean, in operators/.
 */

import { MAX_GROUPS } from "../device.ts";

// Header
/** Operators not finished yet. */
export const LEFT = 0;
/** Words of open bits. */
export const OPEN_WORDS = 1;
/** First word of the operators. */
export const OPERATORS = 2;
/** FAULT_CODE of what went wrong, 0 while nothing has. */
export const FAULT = 3;
/** Of the fault `logits`: the least row at fault, or NO_ROW. */
export const FAULT_ROW = 4;
/** Of any other: first word of the operator that found it, the value, and its index or limit. */
export const FAULT_OPERATOR = 5;
export const FAULT_VALUE = 6;
export const FAULT_INDEX = 7;
/** Start tag of the tile that was taken last: the clock of fair sharing. */
export const VIRTUAL_TIME = 8;
/** Finish tag of every group's last tile. */
export const FINISH = 16;
/** First word of the open bits. */
export const OPEN = FINISH + MAX_GROUPS;

// Operators
export const KIND = 0;
export const GROUP = 1;
export const PRIORITY = 2;
/** Predecessors not finished yet. */
export const WAITS_FOR = 3;
/** First word of the list of successors, and how many there are. */
export const SUCCESSORS = 4;
export const SUCCESSOR_COUNT = 5;
/** Tiles, next tile to take, tiles finished. The first is known once the operator is open. */
export const TILES = 6;
export const CURSOR = 7;
export const DONE = 8;
/** Estimated time of a tile in COST_UNITs, for sharing out the workers. */
export const COST = 9;
export const ARGUMENTS = 10;
/** Enough for the operator with the most arguments, and a multiple of two for the float64 among them. */
export const ARGUMENT_WORDS = 30;
export const OPERATOR_WORDS = ARGUMENTS + ARGUMENT_WORDS;

/** A cursor that no tile count reaches: the operator is not open. */
const CLOSED = 1 << 30;

const NO_ROW = 0x7fffffff;

/**
 * What `FAULT` can be. Faults are in what buffers hold, so only running finds them.
 * A program with a fault finishes the operators that are open and no others.
 */
export const FAULT_CODE = {
  /** A row of logits without finite weights. */
  logits: 1,
  /** A token count below 0 or above `mostTokens`. */
  tokens: 2,
  /** An expert id out of range. */
  expert: 3,
  /** A lane out of range. */
  lane: 4,
  /** A row of `inverse` out of range. */
  row: 5,
  /** A slot of `order` out of range. */
  slot: 6,
} as const;

/** What `KIND` can be. */
export const OPERATOR_KIND = {
  start: 0,
  route: 1,
  bucket: 2,
  project: 3,
  combine: 4,
  pack: 5,
  fill: 6,
} as const;

/** The arguments of an operator, written where the workers will read them. */
export class ArgumentWords {
  readonly words = new Int32Array(ARGUMENT_WORDS);
  readonly #floats = new Float64Array(this.words.buffer);

  /** Writes a whole number or an address; `at` counts from the operator's first word. */
  int(at: number, value: number): void {
    this.words[at - ARGUMENTS] = value;
  }

  /** Writes a float64 at an even word. */
  float(at: number, value: number): void {
    this.#floats[(at - ARGUMENTS) >> 1] = value;
  }
}

/** One operator of a program to be. */
export interface ProgramNode {
  readonly kind: number;
  readonly group: number;
  readonly priority: number;
  /** Indices of earlier nodes. */
  readonly predecessors: readonly number[];
  /** ARGUMENT_WORDS words. */
  readonly words: Int32Array;
}

/** Lays a program out. The nodes must be in an order in which they could run. */
export function buildProgram(nodes: readonly ProgramNode[]): Int32Array {
  const count = nodes.length + 1;
  const openWords = Math.ceil(count / 32);
  // Even, so that float64 arguments are aligned.
  const operators = OPEN + openWords + (openWords % 2);
  const successors: number[][] = Array.from({ length: count }, () => []);
  for (const [index, node] of nodes.entries()) {
    const before = node.predecessors.length > 0 ? node.predecessors : [-1];
    for (const predecessor of before) successors[predecessor + 1]?.push(index + 1);
  }
  const edges = successors.reduce((sum, list) => sum + list.length, 0);
  let next = operators + count * OPERATOR_WORDS;
  const image = new Int32Array(next + edges);
  image[LEFT] = count;
  image[OPEN_WORDS] = openWords;
  image[OPERATORS] = operators;
  image[FAULT_ROW] = NO_ROW;

  for (let i = 0; i < count; i++) {
    const at = operators + i * OPERATOR_WORDS;
    const node = nodes[i - 1];
    const after = successors[i] ?? [];
    image[at + SUCCESSORS] = next;
    image[at + SUCCESSOR_COUNT] = after.length;
    for (const successor of after) image[next++] = operators + successor * OPERATOR_WORDS;
    image[at + CURSOR] = CLOSED;
    if (node === undefined) continue;
    image[at + KIND] = node.kind;
    image[at + GROUP] = node.group;
    image[at + PRIORITY] = node.priority;
    image[at + WAITS_FOR] = Math.max(1, node.predecessors.length);
    image.set(node.words, at + ARGUMENTS);
  }
  // The starting gun is open from the start.
  image[operators + KIND] = OPERATOR_KIND.start;
  image[operators + TILES] = 1;
  image[operators + CURSOR] = 0;
  image[OPEN] = 1;
  return image;
}
