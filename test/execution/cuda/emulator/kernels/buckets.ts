/** kernels/triton/routing/mark.py and bucket.py */

import type { KernelCall } from "../call.ts";
import { popcount } from "../numbers.ts";
import { tidyUp } from "./tidy.ts";

/** An expert with more than so many times the mean number of tiles is busy. */
const BUSY = 3 / 2;
/** Only if the mean is more than this, and busy ones have at least so much of all tiles. */
const MEAN_TILES = { more: 8, than: 5 };
const BUSY_SHARE = 1 / 8;
/** And only on lists of tiles this high. */
const BUSY_HEIGHT = 128;

/** Program i: slots BLOCK * i and on. */
export function mark(call: KernelCall): void {
  const [experts, padded, topK] = [
    call.number("experts"),
    call.number("padded_experts"),
    call.number("top_k"),
  ];
  const live = Math.min(call.pointer("tokens").int(0) * topK, call.grid.x * call.constant("BLOCK"));
  const ids = call.pointer("ids").loadInts(0, live);
  ids.forEach((expert, slot) => {
    if (expert < 0 || expert >= experts) return;
    const token = Math.floor(slot / topK);
    const word = call.pointer("sets").atomic(Math.floor(token / 32) * padded + expert);
    word[0] = (word[0] as number) | (1 << (token % 32));
  });
}

function bitsBelow(n: number): number {
  if (n >= 32) return -1;
  return n <= 0 ? 0 : (1 << n) - 1;
}

interface Counted {
  readonly live: number;
  /** Words, EXPERTS to each 32 tokens. */
  readonly sets: Int32Array;
  readonly count: Int32Array;
  readonly kept: Int32Array;
  readonly offset: Int32Array;
  readonly limit: number;
}

export function bucket(call: KernelCall): void {
  const counted = count(call);
  const fillPrograms = call.number("fill_programs");
  for (let program = 0; program < call.grid.x; program++) {
    if (program < fillPrograms) fill(call, counted, program);
    else list(call, counted, program - fillPrograms);
  }
  tidyUp(call);
}

function count(call: KernelCall): Counted {
  const number = (name: string) => call.number(name);
  const [experts, topK] = [number("experts"), number("top_k")];
  const padded = call.constant("EXPERTS");
  const words = Math.ceil(number("most_tokens") / 32);
  const live = call.pointer("tokens").int(0);
  const sets = call.pointer("sets").loadInts(0, words * padded);
  const count = new Int32Array(padded);
  sets.forEach((word, i) => {
    const first = 32 * Math.floor(i / padded);
    count[i % padded] = (count[i % padded] as number) + popcount(word & bitsBelow(live - first));
  });
  const most = Math.ceil((number("capacity_factor") * live * topK) / experts);
  const limit = Math.min(most, 2 ** 31 - 1);
  const kept = count.map((each) => Math.min(each, limit));
  const offset = new Int32Array(padded);
  for (let e = 1; e < padded; e++) offset[e] = (offset[e - 1] as number) + (kept[e - 1] as number);
  return { live, sets, count, kept, offset, limit };
}

/** Gives the slots of some words of tokens their rows. */
function fill(call: KernelCall, { live, sets, offset, limit }: Counted, program: number): void {
  const number = (name: string) => call.number(name);
  const [experts, topK] = [number("experts"), number("top_k")];
  const padded = call.constant("EXPERTS");
  const words = Math.ceil(number("most_tokens") / 32);
  const each = Math.ceil(words / number("fill_programs"));
  const first = program * each;
  const earlier = new Int32Array(padded);
  const add = (word: number) => {
    for (let e = 0; e < padded; e++) {
      earlier[e] = (earlier[e] as number) + popcount(sets[word * padded + e] as number);
    }
  };
  for (let word = 0; word < Math.min(first, words); word++) add(word);
  for (let word = first; word < Math.min(first + each, Math.ceil(live / 32)); word++) {
    const slots = Math.min(32 * topK, live * topK - word * 32 * topK);
    const ids = call.pointer("ids").loadInts(word * 32 * topK, slots);
    ids.forEach((expert, inWord) => {
      const slot = word * 32 * topK + inWord;
      const known = expert >= 0 && expert < experts;
      const chosenBy = known ? (sets[word * padded + expert] as number) : 0;
      const below = popcount(chosenBy & bitsBelow(Math.floor(inWord / topK)));
      const rank = known ? (earlier[expert] as number) + below : 0;
      const fits = known && rank < limit;
      const row = fits ? (offset[expert] as number) + rank : -1;
      call.pointer("inverse").storeInts(slot, [row]);
      if (fits) call.pointer("order").storeInts(row, [slot]);
    });
    add(word);
  }
}

/** Program i: a share of list i % lists. */
function list(call: KernelCall, { count, kept, offset }: Counted, program: number): void {
  const number = (name: string) => call.number(name);
  const [experts, lanes, classes] = [number("experts"), number("lanes"), number("classes")];
  const lists = lanes * classes;
  const mine = program % lists;
  const lanesOf = call.pointer("lane_of").loadInts(0, experts);
  if (program === 0) {
    call.pointer("counts").storeInts(0, count.subarray(0, experts));
    call.pointer("offsets").storeInts(0, offset.subarray(0, experts));
    call.pointer("offsets").storeInts(experts, [kept.reduce((a, b) => a + b)]);
  }
  const told = (which: number) => call.pointer("lists").loadInts(4 * which, 4);
  const [height, , firstTile, together] = told(mine) as unknown as [number, number, number, number];
  const ownClass = mine % classes;
  const classOf = (rows: number) => {
    for (let c = 0; c < classes - 1; c++) {
      if (rows <= (told(mine - ownClass + c)[1] as number)) return c;
    }
    return classes - 1;
  };
  const pieces = Array.from({ length: experts }, (_, e) => {
    const rows = kept[e] as number;
    const on = lanesOf[e] === Math.floor(mine / classes) && classOf(rows) === ownClass;
    return on ? Math.ceil(rows / height) : 0;
  });
  const busy = height < BUSY_HEIGHT ? [] : busyExperts(pieces);
  if (program < lists) {
    call.pointer("tile_counts").storeInts(4 * mine, [sum(pieces), tilesOf(busy, pieces), 0, 0]);
  }
  const programs = call.grid.x - number("fill_programs");
  const step = Math.ceil((programs - mine) / lists);
  let at = firstTile;
  const others = [...pieces.keys()].filter((e) => !busy.includes(e));
  for (const e of [...busy, ...others]) {
    const tiles = pieces[e] as number;
    const group = Math.ceil(tiles / Math.ceil(tiles / together));
    for (let tile = Math.floor(program / lists); tile < tiles; tile += step) {
      const done = tile * height;
      const words = [e, (offset[e] as number) + done, Math.min((kept[e] as number) - done, height)];
      const place = tile % group;
      const grouped = place | (Math.min(group, tiles - tile + place) << 16);
      call.pointer("tiles").storeInts((at + tile) * 4, [...words, grouped]);
    }
    at += tiles;
  }
}

/** The experts in front of a list. */
function busyExperts(pieces: readonly number[]): number[] {
  const total = sum(pieces);
  const used = pieces.filter((each) => each > 0).length;
  const busy = [...pieces.keys()].filter((e) => (pieces[e] as number) * used > BUSY * total);
  const few =
    MEAN_TILES.than * total <= MEAN_TILES.more * used || tilesOf(busy, pieces) < BUSY_SHARE * total;
  return few ? [] : busy;
}

function tilesOf(experts: readonly number[], pieces: readonly number[]): number {
  return sum(experts.map((e) => pieces[e] as number));
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((a, b) => a + b, 0);
}
