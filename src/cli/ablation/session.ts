/**
 * What `nexus bench --ablation` does: for every layer, batch size and skew, one way to
 * run the step after the other, each checked against the first, timed, and its energy
 * measured.
 */

import { setTimeout as sleep } from "node:timers/promises";
import { EnergyMonitor, type EnergyReading } from "../../control/energy-monitor.ts";
import { tokenBucket } from "../../control/graph-manager.ts";
import { EXPERT_SLICE_IDS } from "../../control/plan.ts";
import type { PolicyName } from "../../control/slices/manager.ts";
import { InvalidArgumentError } from "../../errors.ts";
import type { Device, Packing } from "../../execution/device.ts";
import { LayerModules } from "../../layer/layer-modules.ts";
import { relativeError } from "../../reference/index.ts";
import type { DType } from "../../tensor.ts";
import { makeHiddenStates } from "../../workload/hidden-states.ts";
import { ExpertPopularity, formatSkew, type RoutingSkew } from "../../workload/popularity.ts";
import { layerSpecOf, type Preset } from "../../workload/presets.ts";
import { Random } from "../../workload/random.ts";
import { FilledLayer } from "../../workload/random-layer.ts";
import { BareStep, type LoadedLayer, loadedLayer, oneLane } from "../bench/bare-step.ts";
import { ERROR_BOUND } from "../bench/cell.ts";
import { deviceSeconds } from "../bench/device-clock.ts";
import { Inputs } from "../bench/inputs.ts";
import { largerOf, type MachineLimits, measureLimits } from "../bench/machine-limits.ts";
import { checkFits } from "../bench/presets.ts";
import { type Effort, type Timing, timeOne, timingOf } from "../bench/timing.ts";
import { type Floor, floorOf, type Work, workOf } from "../bench/work.ts";
import { type DeviceFlags, type DeviceSummary, openFromFlags, summaryOf } from "../device.ts";
import { IncorrectResultError } from "../failure.ts";
import { Progress } from "../terminal/progress.ts";
import { packageVersion } from "../version.ts";
import { DEFAULTS } from "./defaults.ts";
import { type Rung, type RungName, rungsOf } from "./rungs.ts";

/** Different batches that take turns, each in buffers of its own. */
const BATCHES = 4;
/** Every batch is run so often before timing begins. */
const WARM_UP_ROUNDS = 2;
/** A GPU that has just worked hard has lowered its clocks: every rung starts rested, so that none pays for the one before. */
const REST_MS = 300;
/** How much longer than the counter's shortest window energy is measured. */
const WINDOW_MARGIN = 1.2;
const DEFAULT_STREAMS = 8;
/** The last rung has more streams than there are slices with experts. */
const LEAST_STREAMS = EXPERT_SLICE_IDS.length + 1;

export interface AblationOptions extends DeviceFlags {
  readonly presets?: readonly Preset[];
  readonly tokens?: readonly number[];
  readonly routing?: readonly RoutingSkew[];
  readonly dtype?: DType;
  readonly streams?: number;
  readonly policy?: PolicyName;
  readonly effort: Effort;
  readonly seed: number;
}

export interface RungResult {
  readonly name: RungName;
  /** Streams that the experts run on. */
  readonly streams: number;
  /** Of a step, from its submission to the host's noticing its end. */
  readonly seconds: Timing;
  /** Of a replay, by the device's own clock; absent for eager rungs and where there is none. */
  readonly deviceSeconds?: Timing;
  /** Median time of the rung before over that of this one; below 1 it is slower. */
  readonly speedup?: number;
  readonly tokensPerSecond: number;
  /** The least time that the measured limits leave, over the time taken. */
  readonly shareOfLimit: number;
  readonly energy: EnergyReading;
  /** Against the first rung. */
  readonly relativeError: number;
}

export interface AblationResult extends Work {
  readonly preset: string;
  readonly dtype: DType;
  readonly tokens: number;
  readonly routing: string;
  readonly expertsUsed: number;
  /** How the experts' weights are kept. */
  readonly packedWeights: Packing;
  readonly floor: Floor;
  /** The experts of so few tokens are a single operator, without lanes: slices and streams change nothing. */
  readonly singleOperator: boolean;
  readonly rungs: readonly RungResult[];
}

export interface AblationReport {
  readonly nexus: string;
  readonly command: "bench --ablation";
  readonly date: string;
  readonly seed: number;
  readonly node: string;
  readonly device: DeviceSummary;
  readonly limits: MachineLimits;
  /** Why there are no joules, where there are none. */
  readonly noEnergy?: string;
  readonly results: readonly AblationResult[];
}

export type AblationHead = Omit<AblationReport, "results">;

export interface AblationEvents {
  onBegin(head: AblationHead): void;
  onResult(head: AblationHead, result: AblationResult): void;
}

/** @throws InvalidArgumentError for too few streams, OutOfDeviceMemoryError, IncorrectResultError */
export async function runAblation(
  options: AblationOptions,
  events: AblationEvents,
): Promise<AblationReport> {
  const { streams: most } = options;
  if (most !== undefined && most < LEAST_STREAMS) {
    throw new InvalidArgumentError(
      `--streams is ${most}; an ablation ends with more streams than there are slices: ${LEAST_STREAMS} or more.`,
    );
  }
  await using device = await openFromFlags(options);
  const chosen = DEFAULTS[device.properties.kind];
  const { presets = chosen.presets, tokens: sizes = chosen.tokens } = options;
  const { routing = chosen.routing, seed, packWeights = false } = options;
  const dtypeOf = (preset: Preset) => options.dtype ?? preset.dtype;
  for (const preset of presets) checkFits(device, preset, dtypeOf(preset), packWeights);
  using progress = new Progress();
  progress.show(0, "measuring what the machine can do");
  const dtypes = new Set(presets.map(dtypeOf));
  let limits = await measureLimits(device, dtypes);
  const head: AblationHead = {
    nexus: packageVersion(),
    command: "bench --ablation",
    date: new Date().toISOString(),
    seed,
    node: process.version,
    device: await summaryOf(device),
    limits,
    ...(!device.energy.available && { noEnergy: device.energy.reason }),
  };
  progress.clear();
  events.onBegin(head);

  const results: AblationResult[] = [];
  const total = presets.length * sizes.length * routing.length;
  for (const preset of presets) {
    const dtype = dtypeOf(preset);
    const cells = sizes.flatMap((tokens) =>
      routing.map((skew): Cell => ({ preset, dtype, tokens, skew })),
    );
    const measured = await ablatePreset(device, limits, cells, options, (done, label) =>
      progress.show((results.length + done) / total, label),
    );
    results.push(...measured);
    // Machines change speed: a limit that was measured while this one was slow is none.
    progress.show(results.length / total, "measuring again what the machine can do");
    limits = largerOf(limits, await measureLimits(device, dtypes));
    progress.clear();
    for (const result of measured) events.onResult({ ...head, limits }, beside(limits, result));
  }
  return { ...head, limits, results: results.map((result) => beside(limits, result)) };
}

/** The same result, its shares of other limits. */
function beside(limits: MachineLimits, result: AblationResult): AblationResult {
  const floor = floorOf(result, limits, result.dtype);
  const share = (rung: RungResult) => floor.seconds / rung.seconds.median;
  const rungs = result.rungs.map((rung) => ({ ...rung, shareOfLimit: share(rung) }));
  return { ...result, floor, rungs };
}

/** @param cells of one preset, whose weights are made once */
async function ablatePreset(
  device: Device,
  limits: MachineLimits,
  cells: readonly Cell[],
  options: AblationOptions,
  onRung: (done: number, label: string) => void,
): Promise<AblationResult[]> {
  const [{ preset, dtype }] = cells as [Cell];
  const weights = new FilledLayer(preset, dtype, options.seed);
  const spec = layerSpecOf(preset, dtype);
  using modules = await LayerModules.load(device, spec, weights, options.packWeights);
  const layer = loadedLayer(device, spec, modules);
  const results: AblationResult[] = [];
  for (const cell of cells) {
    const name = `${preset.name}, ${cell.tokens} tokens, ${formatSkew(cell.skew)}`;
    const onCell = (done: number, rung: string) =>
      onRung(results.length + done, `${name}: ${rung}`);
    results.push(await ablate(layer, weights, limits, cell, options, onCell));
  }
  return results;
}

interface Cell {
  readonly preset: Preset;
  readonly dtype: DType;
  readonly tokens: number;
  readonly skew: RoutingSkew;
}

async function ablate(
  layer: LoadedLayer,
  weights: FilledLayer,
  limits: MachineLimits,
  { preset, dtype, tokens, skew }: Cell,
  { seed, streams = DEFAULT_STREAMS, policy, effort }: AblationOptions,
  onRung: (done: number, rung: string) => void,
): Promise<AblationResult> {
  const random = new Random(seed).fork(`${preset.name} ${tokens} ${formatSkew(skew)}`);
  const popularity = ExpertPopularity.draw(skew, preset.experts, random);
  using inputs = new Inputs(
    layer.device,
    dtype,
    Array.from({ length: BATCHES }, () => makeHiddenStates(weights, popularity, tokens, random)),
  );
  const { packed: packedWeights } = layer.modules.parts.experts;
  const { counts, expertsUsed } = await loadOf(layer, inputs, tokens);
  const work = workOf(preset, dtype, tokens, expertsUsed, packedWeights);
  const floor = floorOf(work, limits, dtype);
  const makers = rungsOf(layer, inputs, BATCHES, counts, {
    tokens,
    streams,
    ...(policy !== undefined && { policy }),
  });
  const rungs: RungResult[] = [];
  const expected: Float32Array[] = [];
  for (const [i, make] of makers.entries()) {
    using rung = await make();
    onRung(i / makers.length, rung.name);
    const error = await errorOf(rung, expected);
    const bound = ERROR_BOUND[layer.rowType];
    if (!(error <= bound)) {
      throw new IncorrectResultError(
        `${preset.name}, ${tokens} tokens: ${rung.name} differs from the loop over the experts by ${error}, more than ${bound}.`,
      );
    }
    const measured = await measure(layer.device, rung, tokens, effort);
    const before = rungs.at(-1);
    const { median } = measured.seconds;
    rungs.push({
      name: rung.name,
      streams: rung.streams,
      ...measured,
      ...(before && { speedup: before.seconds.median / median }),
      tokensPerSecond: tokens / median,
      shareOfLimit: floor.seconds / median,
      relativeError: error,
    });
  }
  const routing = formatSkew(skew);
  const singleOperator = tokenBucket(tokens) <= layer.modules.parts.decodeTokens;
  return {
    preset: preset.name,
    dtype,
    tokens,
    routing,
    expertsUsed,
    packedWeights,
    ...work,
    floor,
    singleOperator,
    rungs,
  };
}

/** Tokens per expert over all batches, which slices are made for, and experts in use in one of them. */
async function loadOf(layer: LoadedLayer, inputs: Inputs, tokens: number) {
  using step = new BareStep(layer, oneLane(layer), { tokens });
  const counts = new Int32Array(layer.spec.router.experts);
  let expertsUsed = 0;
  for (let turn = 0; turn < BATCHES; turn++) {
    await step.write(inputs.at(turn));
    await step.run();
    (await step.counts()).forEach((count, expert) => {
      counts[expert] = (counts[expert] as number) + count;
      if (count > 0) expertsUsed += 1 / BATCHES;
    });
  }
  return { counts, expertsUsed };
}

/** Runs every batch. @param expected outputs of the first rung; filled in by it */
async function errorOf(rung: Rung, expected: Float32Array[]): Promise<number> {
  let worst = 0;
  for (let turn = 0; turn < BATCHES; turn++) {
    await rung.run(turn);
    const output = await rung.output(turn);
    expected[turn] ??= output;
    worst = Math.max(worst, relativeError(output, expected[turn] as Float32Array));
  }
  return worst;
}

async function measure(device: Device, rung: Rung, tokens: number, effort: Effort) {
  for (let turn = 0; turn < WARM_UP_ROUNDS * BATCHES; turn++) await rung.run(turn);
  if (device.properties.kind === "cuda") await sleep(REST_MS);
  const seconds = await timeOne((turn) => rung.run(turn), effort);
  const graphs = rung.graphs;
  const onDevice =
    graphs.length === 0 ? undefined : await deviceSeconds(device, graphs, seconds.samples.length);
  return {
    seconds,
    ...(onDevice && { deviceSeconds: timingOf(onDevice) }),
    energy: await energyOf(device, rung, tokens),
  };
}

/** Runs the rung for a little more than the shortest window that a reading takes. */
async function energyOf(device: Device, rung: Rung, tokens: number): Promise<EnergyReading> {
  if (!device.energy.available) return device.energy;
  const window = new EnergyMonitor(device.energy).begin();
  const milliseconds = device.energy.minimumWindowSeconds * WINDOW_MARGIN * 1000;
  const until = performance.now() + milliseconds;
  let turns = 0;
  while (performance.now() < until) await rung.run(turns++);
  return window.end({ tokens: turns * tokens });
}
