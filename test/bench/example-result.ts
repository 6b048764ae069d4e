/**
 * A made-up result of the peer benchmark, for the tests of what reads such files. Times
 * follow from the roofline and a factor for each contender, so that their medians are
 * known; nothing in it was measured.
 */

export interface ExampleContender {
  name: string;
  mode?: string;
  setting?: object;
  relativeError?: number;
  rowError?: number;
  rejected?: { setting: object; reason: string }[];
  samples?: number[];
  rounds?: number[][];
  failed?: string;
}

export interface ExampleCell {
  shape: string;
  tokens: number;
  routing: string;
  seed: number;
  experts?: number;
  batches?: number;
  expertsUsed: number;
  imbalance: number;
  weightBytes: number;
  gflop: number;
  limit?: { name: string; samples: number[]; rounds?: number[][] };
  contenders: ExampleContender[];
}

const SHAPES = [
  { name: "qwen3-30b-a3b", experts: 128, topK: 8, hidden: 2048, intermediate: 768 },
  { name: "mixtral-8x7b", experts: 8, topK: 2, hidden: 4096, intermediate: 14336 },
];
const TOKENS = [1, 4, 16, 64, 256, 1024, 2048, 4096, 8192];
const ROUTINGS = ["uniform", "zipf:1", "zipf:1.5", "hot"];
/** Time over Nexus's, and what skew adds on top from 1024 tokens. */
const PEERS = [
  { name: "vllm-schedule", mode: "graph", factor: 1.3, skew: 1.2 },
  { name: "triton-kernels", mode: "graph", factor: 1.12, skew: 1.1 },
  { name: "torch-grouped-mm", mode: "graph", factor: 1.9, skew: 1.15 },
  { name: "torch-grouped-mm", mode: "eager", factor: 3.2, skew: 1.1 },
  { name: "transformers", mode: "eager", factor: 9, skew: 1 },
];
const SKEW_OF_NEXUS = 1.05;
const LAUNCH_US = 8;

const ROUNDS = 10;
const PER_ROUND = 20;
/** Shares of the median that samples are apart from it; symmetric, so that the median is what is asked for. */
const STEPS = Array.from({ length: PER_ROUND }, (_, i) => (i - (PER_ROUND - 1) / 2) * 0.0005);

/** A contender whose samples, and those of every round, have the given median. */
export function contender(name: string, us: number, mode = "graph"): ExampleContender {
  const round = STEPS.map((step) => us * (1 + step));
  const rounds = Array.from({ length: ROUNDS }, (_, r) => rotated(round, r));
  return { name, mode, setting: {}, relativeError: 0.003, samples: rounds.flat(), rounds };
}

/** A contender with these bursts. */
export function timed(name: string, rounds: number[][], mode = "graph"): ExampleContender {
  return { name, mode, relativeError: 0.003, samples: rounds.flat(), rounds };
}

function rotated<T>(values: readonly T[], by: number): T[] {
  return [...values.slice(by), ...values.slice(0, by)];
}

export function cell(
  where: Pick<ExampleCell, "shape" | "tokens" | "routing">,
  contenders: ExampleContender[],
  more: Partial<ExampleCell> = {},
): ExampleCell {
  return {
    ...where,
    seed: 1,
    expertsUsed: 8,
    imbalance: 1.5,
    weightBytes: 1e9,
    gflop: 10,
    contenders,
    ...more,
  };
}

function madeUpCell(shape: (typeof SHAPES)[number], tokens: number, routing: string): ExampleCell {
  const skewed = routing !== "uniform";
  const { experts, topK, hidden, intermediate } = shape;
  const even = experts * (1 - (1 - topK / experts) ** tokens);
  const expertsUsed = skewed ? 1 + (even - 1) * 0.7 : even;
  const weightBytes = expertsUsed * 3 * hidden * intermediate * 2;
  const gflop = (2 * tokens * topK * 3 * hidden * intermediate) / 1e9;
  const floor = Math.max(weightBytes / 4.8e6, (gflop * 1e3) / 989);
  const many = tokens >= 1024;
  const nexus = (floor * (many ? 1.5 : 1.12) + LAUNCH_US) * (skewed && many ? SKEW_OF_NEXUS : 1);
  // Between these token counts one peer is a little ahead, beyond the noise.
  const isLost = tokens === 64 && routing === "uniform";
  const peers = PEERS.map(({ name, mode, factor, skew }) => {
    const closer = name === "triton-kernels" && isLost ? 0.86 : 1;
    const gap = tokens === 1 ? factor : 1 + (factor - 1) * (many ? 1 : 0.4);
    return contender(name, nexus * gap * closer * (skewed && many ? skew : 1), mode);
  });
  const failed = { name: "scatter-loop", failed: "out of memory" };
  return {
    shape: shape.name,
    tokens,
    routing,
    seed: 1,
    expertsUsed,
    weightBytes,
    gflop,
    imbalance: skewed ? 6.2 : 1.3,
    limit: { name: "cublas", samples: contender("cublas", floor * 1.25).samples as number[] },
    contenders: [
      contender("nexus", nexus),
      contender("nexus-again", nexus * 1.004),
      ...peers,
      ...(tokens === 8192 ? [failed] : []),
    ],
  };
}

/** What a window of Nexus's steps took: 0.6 J a step. */
export const reading = (cell: { shape: string; tokens: number; routing: string }) => ({
  ...cell,
  contender: "nexus",
  mode: "graph",
  seconds: 2,
  steps: 1000,
  joules: 600,
  idleWatts: 100,
});

function joules(contenderName: string, factor: number, tokens: number) {
  return {
    shape: "qwen3-30b-a3b",
    tokens,
    routing: "uniform",
    contender: contenderName,
    mode: "graph",
    seconds: 2,
    steps: Math.round(2000 / factor),
    joules: 1300,
    idleWatts: 80,
  };
}

/** A whole result on a made-up H200. */
export function exampleResult() {
  return {
    format: "nexus-peers/1",
    date: "2026-11-24T10:00:00.000Z",
    commit: "0123abc",
    mode: "quick",
    seed: 1,
    queuedBursts: true,
    device: {
      name: "NVIDIA H200",
      driver: "580.159.04",
      computeUnits: 132,
      memoryBytes: 150109880320,
    },
    versions: { node: "v24.0.0", python: "3.12.1", torch: "2.11.0", triton: "3.6.0" },
    limits: { copyTBs: 4.2, dataSheetTBs: 4.8, matrixTFlops: 780, dataSheetTFlops: 989 },
    idleWatts: 75,
    conditions: [
      { when: "2026-11-24T10:00:00.000Z", smMHz: 1980, temperatureC: 41, powerW: 120 },
      { when: "2026-11-24T10:05:00.000Z", smMHz: 1650, temperatureC: 63, powerW: 698 },
    ],
    unavailable: [{ name: "scatter-moe", reason: "does not install | here" }],
    shapes: SHAPES.map((shape) => ({ ...shape, renormalize: true })),
    cells: SHAPES.flatMap((shape) =>
      TOKENS.flatMap((tokens) => ROUTINGS.map((routing) => madeUpCell(shape, tokens, routing))),
    ),
    energy: [64, 4096].flatMap((tokens) => [
      joules("nexus", 1, tokens),
      joules("vllm-schedule", 1.25, tokens),
      joules("torch-grouped-mm", 1.8, tokens),
    ]),
  };
}

/** The part of the same benchmark that holds loops over the experts. */
export function exampleLoops() {
  const where = { shape: "small", tokens: 512, routing: "uniform" };
  const loop = { contender: "loop", mode: "eager", seconds: 2, steps: 1000, joules: 400 };
  return {
    ...exampleResult(),
    mode: "loops",
    shapes: [],
    cells: [
      cell(where, [
        contender("nexus", 100),
        contender("loop", 2000, "eager"),
        contender("dense", 700),
      ]),
    ],
    energy: [
      { ...where, contender: "nexus", mode: "graph", seconds: 2, steps: 20000, joules: 1200 },
      { ...where, ...loop },
    ].map((each) => ({ ...each, idleWatts: 80 })),
  };
}
