/** What `nexus bench` does: every preset's weights once, every cell of it in turn. */

import { cpus } from "node:os";
import type { PolicyName } from "../../control/index.ts";
import { OutOfDeviceMemoryError } from "../../errors.ts";
import type { Device } from "../../execution/device.ts";
import { MoELayer } from "../../layer/moe-layer.ts";
import { BYTES_PER_ELEMENT, type DType } from "../../tensor.ts";
import { formatSkew, type RoutingSkew } from "../../workload/popularity.ts";
import { layerSpecOf, type Preset } from "../../workload/presets.ts";
import { Random } from "../../workload/random.ts";
import { RandomLayer } from "../../workload/random-layer.ts";
import { type DeviceFlags, type DeviceSummary, openFromFlags, summaryOf } from "../device.ts";
import { formatBytes } from "../terminal/format.ts";
import { Progress } from "../terminal/progress.ts";
import { packageVersion } from "../version.ts";
import { type CellResult, type CellSpec, measureCell } from "./cell.ts";
import { type MachineLimits, measureLimits } from "./machine-limits.ts";
import { SequentialLayer } from "./sequential.ts";
import type { Effort } from "./timing.ts";

export interface BenchOptions extends DeviceFlags {
  readonly presets: readonly Preset[];
  readonly tokens: readonly number[];
  readonly routing: readonly RoutingSkew[];
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
    readonly effort: Effort;
  };
  readonly limits: MachineLimits;
  readonly cells: readonly CellResult[];
}

/** What is known before the first cell. */
export type BenchHead = Omit<BenchReport, "cells">;

export interface BenchEvents {
  onBegin(head: BenchHead): void;
  /** The cells of one preset are done. */
  onPreset(preset: Preset, dtype: DType, cells: readonly CellResult[]): void;
}

/** @throws OutOfDeviceMemoryError before any work if the weights of a preset do not fit */
export async function runBench(options: BenchOptions, events: BenchEvents): Promise<BenchReport> {
  await using device = await openFromFlags(options);
  const dtypeOf = (preset: Preset) => options.dtype ?? preset.dtype;
  for (const preset of options.presets) checkFits(device, preset, dtypeOf(preset));

  using progress = new Progress();
  progress.show(0, "measuring what the machine can do");
  const limits = await measureLimits(device, new Set(options.presets.map(dtypeOf)));
  const head = headOf(options, device, limits);
  progress.clear();
  events.onBegin(head);

  const cells: CellResult[] = [];
  const total = options.presets.length * options.tokens.length * options.routing.length;
  for (const preset of options.presets) {
    const specs = options.tokens.flatMap((tokens) =>
      options.routing.map((skew): CellSpec => ({ preset, dtype: dtypeOf(preset), tokens, skew })),
    );
    const results = await measurePreset(options, device, limits, preset, specs, (done, label) =>
      progress.show((cells.length + done * specs.length) / total, label),
    );
    cells.push(...results);
    progress.clear();
    events.onPreset(preset, dtypeOf(preset), results);
  }
  return { ...head, cells };
}

async function measurePreset(
  options: BenchOptions,
  device: Device,
  limits: MachineLimits,
  preset: Preset,
  specs: readonly CellSpec[],
  onProgress: (done: number, label: string) => void,
): Promise<CellResult[]> {
  const { effort, seed, streams, policy } = options;
  const dtype = options.dtype ?? preset.dtype;
  onProgress(0, `${preset.name}: making weights`);
  const spec = layerSpecOf(preset, dtype);
  const weights = new RandomLayer(preset, dtype, seed);
  await using layer = await new MoELayer(spec, weights, {
    device,
    ...(streams !== undefined && { streams }),
    ...(policy !== undefined && { slices: { policy } }),
  }).ready();
  const modules = await layer.modules;
  using sequential = new SequentialLayer(device, spec, modules, Math.max(...options.tokens));
  const bench = { weights, layer, sequential, limits, effort };
  const results: CellResult[] = [];
  for (const [i, cell] of specs.entries()) {
    const name = `${preset.name}, ${cell.tokens} tokens, ${formatSkew(cell.skew)}`;
    onProgress(i / specs.length, name);
    const random = new Random(seed).fork(name);
    const onCell = (done: number) => onProgress((i + done) / specs.length, name);
    results.push(await measureCell(bench, cell, random, onCell));
  }
  return results;
}

function headOf(
  { seed, streams, policy, effort }: BenchOptions,
  device: Device,
  limits: MachineLimits,
): BenchHead {
  return {
    nexus: packageVersion(),
    command: "bench",
    date: new Date().toISOString(),
    seed,
    node: process.version,
    platform: `${process.platform} ${process.arch}`,
    cpu: cpus()[0]?.model ?? "unknown",
    device: summaryOf(device),
    options: { streams: streams ?? "default", policy: policy ?? "default", effort },
    limits,
  };
}

function checkFits(device: Device, preset: Preset, dtype: DType): void {
  const { hiddenSize, intermediateSize, experts } = preset;
  const bytes = experts * 3 * hiddenSize * intermediateSize * BYTES_PER_ELEMENT[dtype];
  const { limitBytes, usedBytes } = device.memory();
  const available = limitBytes - usedBytes;
  if (bytes <= available) return;
  throw new OutOfDeviceMemoryError(
    `the ${dtype} weights of preset ${preset.name} (${formatBytes(bytes)})`,
    bytes,
    available,
    dtype === "float32" ? "Try --dtype bfloat16." : "Choose a smaller preset.",
  );
}
