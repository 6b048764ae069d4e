/** What `nexus bench` does: every preset's weights once, every cell of it in turn. */

import { cpus } from "node:os";
import type { PolicyName } from "../../control/slices/manager.ts";
import type { Device, Packing } from "../../execution/device.ts";
import { MoELayer } from "../../layer/moe-layer.ts";
import type { DType } from "../../tensor.ts";
import { formatSkew, type RoutingSkew } from "../../workload/popularity.ts";
import { layerSpecOf, type Preset } from "../../workload/presets.ts";
import { Random } from "../../workload/random.ts";
import { FilledLayer } from "../../workload/random-layer.ts";
import { type DeviceFlags, type DeviceSummary, openFromFlags, summaryOf } from "../device.ts";
import { plural } from "../terminal/format.ts";
import { Progress } from "../terminal/progress.ts";
import { packageVersion } from "../version.ts";
import { loadedLayer } from "./bare-step.ts";
import { beside, type CellResult, type CellSpec, measureCell } from "./cell.ts";
import { largerOf, type MachineLimits, measureLimits } from "./machine-limits.ts";
import { checkFits, DEFAULT_PRESETS, DEFAULT_ROUTING, DEFAULT_TOKENS } from "./presets.ts";
import { SequentialLayer } from "./sequential.ts";
import type { Effort } from "./timing.ts";

export interface BenchOptions extends DeviceFlags {
  /** Default: what suits the device. */
  readonly presets?: readonly Preset[];
  /** Default: what suits the device. */
  readonly tokens?: readonly number[];
  /** Default: uniform, and Zipf's law. */
  readonly routing?: readonly RoutingSkew[];
  /** Default: each preset's own. */
  readonly dtype?: DType;
  readonly streams?: number;
  readonly policy?: PolicyName;
  readonly effort: Effort;
  readonly seed: number;
}

export interface BenchReport {
  readonly nexus: string;
  readonly command: "bench";
  readonly date: string;
  readonly seed: number;
  readonly node: string;
  readonly platform: string;
  readonly cpu: string;
  readonly device: DeviceSummary;
  readonly options: {
    readonly streams: number | "default";
    readonly policy: string;
    readonly packWeights: Packing;
    readonly effort: Effort;
  };
  readonly limits: MachineLimits;
  readonly cells: readonly CellResult[];
}

/** What is known before the first cell. */
export type BenchHead = Omit<BenchReport, "cells">;

export interface BenchEvents {
  /** @param head with the limits as they were measured first */
  onBegin(head: BenchHead): void;
  /** The cells of one preset are done. @param head with the limits as they have been measured until then */
  onPreset(head: BenchHead, preset: Preset, dtype: DType, cells: readonly CellResult[]): void;
}

/** @throws OutOfDeviceMemoryError before any work if the weights of a preset do not fit */
export async function runBench(options: BenchOptions, events: BenchEvents): Promise<BenchReport> {
  await using device = await openFromFlags(options);
  const { kind } = device.properties;
  const { presets = DEFAULT_PRESETS[kind], tokens: sizes = DEFAULT_TOKENS[kind] } = options;
  const { routing = DEFAULT_ROUTING, packWeights = false } = options;
  const dtypeOf = (preset: Preset) => options.dtype ?? preset.dtype;
  for (const preset of presets) checkFits(device, preset, dtypeOf(preset), packWeights);

  using progress = new Progress();
  progress.show(0, "measuring what the machine can do");
  const dtypes = new Set(presets.map(dtypeOf));
  let limits = await measureLimits(device, dtypes);
  const head = await headOf(options, device, limits);
  progress.clear();
  events.onBegin(head);

  const cells: CellResult[] = [];
  const total = presets.length * sizes.length * routing.length;
  for (const preset of presets) {
    const specs = sizes.flatMap((tokens) =>
      routing.map((skew): CellSpec => ({ preset, dtype: dtypeOf(preset), tokens, skew })),
    );
    const results = await measurePreset(options, device, limits, preset, specs, (done, label) =>
      progress.show((cells.length + done * specs.length) / total, label),
    );
    cells.push(...results);
    // Machines change speed: a limit that was measured while this one was slow is none.
    progress.show(cells.length / total, "measuring again what the machine can do");
    limits = largerOf(limits, await measureLimits(device, dtypes));
    const shown = results.map((cell) => beside(limits, cell));
    progress.clear();
    events.onPreset({ ...head, limits }, preset, dtypeOf(preset), shown);
  }
  return { ...head, limits, cells: cells.map((cell) => beside(limits, cell)) };
}

async function measurePreset(
  options: BenchOptions,
  device: Device,
  limits: MachineLimits,
  preset: Preset,
  specs: readonly CellSpec[],
  onProgress: (done: number, label: string) => void,
): Promise<CellResult[]> {
  const { effort, seed, streams, policy, packWeights = false } = options;
  const dtype = options.dtype ?? preset.dtype;
  onProgress(0, `${preset.name}: making weights`);
  const spec = layerSpecOf(preset, dtype);
  const weights = new FilledLayer(preset, dtype, seed);
  await using layer = await new MoELayer(spec, weights, {
    device,
    packWeights,
    ...(streams !== undefined && { streams }),
    ...(policy !== undefined && { slices: { policy } }),
  }).ready();
  const loaded = loadedLayer(device, spec, await layer.modules);
  const most = Math.max(...specs.map(({ tokens }) => tokens));
  using sequential = new SequentialLayer(loaded, most);
  const bench = { weights, loaded, layer, sequential, limits, effort };
  const results: CellResult[] = [];
  for (const [i, cell] of specs.entries()) {
    const name = `${preset.name}, ${plural(cell.tokens, "token")}, ${formatSkew(cell.skew)}`;
    onProgress(i / specs.length, name);
    // Not the name for people, whose wording would decide what is drawn.
    const random = new Random(seed).fork(
      `${preset.name}, ${cell.tokens} tokens, ${formatSkew(cell.skew)}`,
    );
    const onCell = (done: number) => onProgress((i + done) / specs.length, name);
    results.push(await measureCell(bench, cell, random, onCell));
  }
  return results;
}

async function headOf(
  { seed, streams, policy, effort, packWeights = false }: BenchOptions,
  device: Device,
  limits: MachineLimits,
): Promise<BenchHead> {
  return {
    nexus: packageVersion(),
    command: "bench",
    date: new Date().toISOString(),
    seed,
    node: process.version,
    platform: `${process.platform} ${process.arch}`,
    cpu: cpus()[0]?.model ?? "unknown",
    device: await summaryOf(device),
    options: {
      streams: streams ?? "default",
      policy: policy ?? "default",
      packWeights,
      effort,
    },
    limits,
  };
}
