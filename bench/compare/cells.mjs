/**
 * Which cells are measured: shapes, tokens, routings, and how they are divided into parts
 * that fit into ten minutes of a GPU each. How they are measured is in cell.mjs.
 */

/** Layer shapes of gated SiLU experts with softmax routing. The first three are those of the system whose claims are checked in loops.mjs. */
export const SHAPES = [
  shape("small", 512, 1024, 8, 2),
  shape("medium", 1024, 2048, 16, 2),
  shape("large", 2048, 4096, 32, 4),
  shape("mixtral-8x7b", 4096, 14336, 8, 2),
  shape("qwen3-30b-a3b", 2048, 768, 128, 8),
  shape("olmoe-1b-7b", 2048, 1024, 64, 8, { renormalize: false }),
  shape("deepseek-v3", 7168, 2048, 256, 8, {
    note: "softmax routing instead of its grouped sigmoid routing; no shared expert",
  }),
  shape("gpt-oss-20b", 2880, 2880, 32, 4, {
    note: "bfloat16, SiLU instead of its clamped activation, no biases",
  }),
];

function shape(name, hidden, intermediate, experts, topK, { renormalize = true, note } = {}) {
  return { name, hidden, intermediate, experts, topK, renormalize, ...(note && { note }) };
}

export const TOKENS = [1, 4, 16, 64, 256, 1024, 4096, 16384];
export const ROUTINGS = ["uniform", "zipf:1", "zipf:1.5", "hot"];

/** The cells that decide what is worked on next, in about three minutes. */
const QUICK = [
  ["qwen3-30b-a3b", 1, "uniform"],
  ["qwen3-30b-a3b", 4, "uniform"],
  ["qwen3-30b-a3b", 16, "uniform"],
  ["qwen3-30b-a3b", 64, "uniform"],
  ["qwen3-30b-a3b", 256, "zipf:1"],
  ["qwen3-30b-a3b", 1024, "uniform"],
  ["qwen3-30b-a3b", 1024, "zipf:1"],
  ["qwen3-30b-a3b", 1024, "zipf:1.5"],
  ["qwen3-30b-a3b", 4096, "uniform"],
  ["qwen3-30b-a3b", 4096, "zipf:1.5"],
  ["qwen3-30b-a3b", 16384, "uniform"],
  ["mixtral-8x7b", 1, "uniform"],
  ["mixtral-8x7b", 64, "zipf:1"],
  ["mixtral-8x7b", 1024, "uniform"],
  ["mixtral-8x7b", 4096, "uniform"],
];
/** Of the quick cells, those whose energy is measured too: two windows of five seconds each. */
const QUICK_ENERGY = [
  ["qwen3-30b-a3b", 64, "uniform"],
  ["qwen3-30b-a3b", 4096, "uniform"],
];
/** Of a whole shape. */
const SHAPE_ENERGY = [
  [1, "uniform"],
  [64, "uniform"],
  [1024, "zipf:1"],
  [16384, "uniform"],
];

/**
 * Both processes hold the weights, and every peer its buffers: below this a card takes half of the experts of the largest shape. With
 * no more than FEW_PEERS of the others an H100 held them all with 16384 tokens: 67 GiB at most.
 */
const MEMORY_FOR_ALL_EXPERTS = 100 * 2 ** 30;
const MEMORY_WITH_FEW_PEERS = 75 * 2 ** 30;
const FEW_PEERS = 3;

/** Where the fastest loop may come near the schedules: many rows for each of few or large experts. */
const SORTED_LOOP = "loop-sorted";
const SORTED_LOOP_SHAPES = ["large", "mixtral-8x7b", "gpt-oss-20b", "deepseek-v3"];
const SORTED_LOOP_TOKENS = 1024;

export const PARTS = ["quick", ...SHAPES.map(({ name }) => name)];

/**
 * The cells of a part, shape by shape: [{ shape, cells: [{ tokens, routing, energy }] }].
 *
 * @param peers names of those that take part, if not all do
 */
export function cellsOf(part, memoryBytes, peers) {
  // The sorted loop has no graphs, and its buffers are its rows.
  const held = peers?.filter((name) => name !== SORTED_LOOP);
  const few = held !== undefined && held.length <= FEW_PEERS;
  const allExperts = memoryBytes >= (few ? MEMORY_WITH_FEW_PEERS : MEMORY_FOR_ALL_EXPERTS);
  if (part === "quick") {
    const names = [...new Set(QUICK.map(([name]) => name))];
    return names.map((name) => ({
      shape: fitted(name, allExperts),
      cells: QUICK.filter(([each]) => each === name).map(([, tokens, routing]) => ({
        tokens,
        routing,
        energy: includes(QUICK_ENERGY, [name, tokens, routing]),
      })),
    }));
  }
  const cells = TOKENS.flatMap((tokens) =>
    ROUTINGS.map((routing) => ({
      tokens,
      routing,
      energy: includes(SHAPE_ENERGY, [tokens, routing]),
    })),
  );
  return [{ shape: fitted(part, allExperts), cells }];
}

/**
 * Who takes part in a cell.
 *
 * @param peers names of those that take part in all cells; undefined for all there are
 * @param withSortedLoop whether the sorted loop does where it may come near
 */
export function peersOf(peers, withSortedLoop, shape, { tokens }) {
  const joins =
    withSortedLoop && tokens >= SORTED_LOOP_TOKENS && SORTED_LOOP_SHAPES.includes(shape.name);
  if (peers === undefined || !joins || peers.includes(SORTED_LOOP)) return peers;
  return [...peers, SORTED_LOOP];
}

function fitted(name, allExperts) {
  const found = SHAPES.find((each) => each.name === name);
  if (name !== "deepseek-v3" || allExperts) return found;
  const experts = found.experts / 2;
  return { ...found, experts, note: `${found.note}; ${experts} of 256 experts, for memory` };
}

function includes(list, row) {
  return list.some((each) => each.every((value, i) => value === row[i]));
}
