/**
 * What `nexus run` does: checks everything, loads one layer, sends the input
 * through it batch by batch, writes the results. Printing is report.ts's.
 */

import { readLayer, writeSafetensors } from "../../checkpoint/index.ts";
import { EnergyMonitor, type EnergyReading } from "../../control/energy-monitor.ts";
import type { LayerSpec } from "../../data/spec.ts";
import { outputWidth } from "../../data/step-buffers.ts";
import { InvalidLogitsError } from "../../errors.ts";
import type { Device, Packing } from "../../execution/device.ts";
import { MoELayer } from "../../layer/moe-layer.ts";
import { type Tensor, toFloat32 } from "../../tensor.ts";
import { type DeviceFlags, type DeviceSummary, openFromFlags, summaryOf } from "../device.ts";
import { Progress } from "../terminal/progress.ts";
import { packageVersion } from "../version.ts";
import { HiddenInput } from "./hidden-input.ts";
import { checkOutputFile, weightFiles } from "./output-file.ts";

/**
 * Tokens of one forward pass. Enough that weights are read for many tokens at a
 * time, and few enough that what lies between the products stays well under a
 * gigabyte for the widest layers. Results do not depend on it.
 */
const BATCH_TOKENS = 2048;

export interface RunOptions extends DeviceFlags {
  readonly checkpoint: string;
  readonly layer: number;
  readonly input: string;
  readonly tensor: string;
  readonly output: string;
}

export interface RunReport {
  readonly nexus: string;
  readonly command: "run";
  readonly checkpoint: {
    readonly directory: string;
    readonly family: string;
    readonly layer: number;
  };
  readonly spec: LayerSpec;
  readonly device: DeviceSummary;
  readonly input: { readonly file: string; readonly tensor: string };
  readonly output: { readonly file: string };
  readonly tokens: number;
  /** Forward passes, by how each ran. */
  readonly steps: Readonly<Record<string, number>>;
  /** Of all steps together, from submission to completion on the device. */
  readonly seconds: number;
  readonly tokensPerSecond: number;
  /** Tokens per expert. */
  readonly counts: readonly number[];
  readonly heat: readonly string[];
  /** Rows of the output that hold NaN or an infinity. */
  readonly nonFiniteRows: number;
  readonly weightBytes: number;
  /** How the routed experts' weights are kept. */
  readonly packedWeights: Packing;
  readonly energy: EnergyReading;
}

interface Outcome {
  readonly output: Float32Array;
  readonly ids: Int32Array;
  readonly weights: Float32Array;
  readonly counts: Int32Array;
  readonly steps: Record<string, number>;
  readonly seconds: number;
  readonly energy: EnergyReading;
}

/**
 * @throws CheckpointError, InvalidArgumentError, DeviceUnavailableError before any work;
 *   OutOfDeviceMemoryError, InvalidLogitsError during it
 */
export async function runLayer(options: RunOptions): Promise<RunReport> {
  const { packWeights = false } = options;
  const { family, spec, files, weights } = await readLayer(options.checkpoint, options);
  await using _weights = weights;
  await using input = await HiddenInput.open(options.input, options.tensor, spec.hiddenSize);
  await checkOutputFile(options.output, [
    options.input,
    ...files,
    ...(await weightFiles(options.checkpoint)),
  ]);
  await using device = await openFromFlags(options);
  await using layer = new MoELayer(spec, weights, { device, packWeights });
  await layer.ready();

  const hidden = await input.read();
  const outcome = await forwardAll(layer, device, hidden);
  const shape = [input.tokens, spec.router.topK];
  await writeSafetensors(options.output, {
    output: {
      dtype: "float32",
      shape: [input.tokens, outcome.output.length / input.tokens],
      data: outcome.output,
    },
    topk_ids: { dtype: "int32", shape, data: outcome.ids },
    topk_weights: { dtype: "float32", shape, data: outcome.weights },
  });
  // Not the plan's, which may be of before the last step.
  const { profiler } = await layer.control;
  return {
    nexus: packageVersion(),
    command: "run",
    checkpoint: { directory: options.checkpoint, family, layer: options.layer },
    spec,
    device: await summaryOf(device),
    input: { file: options.input, tensor: options.tensor },
    output: { file: options.output },
    tokens: input.tokens,
    steps: outcome.steps,
    seconds: outcome.seconds,
    tokensPerSecond: input.tokens / outcome.seconds,
    counts: Array.from(outcome.counts),
    heat: Array.from(outcome.counts, (_, expert) => profiler.heatOf(expert)),
    nonFiniteRows: countNonFiniteRows(outcome.output, input.tokens),
    weightBytes: (await layer.statistics()).weightBytes,
    packedWeights: packWeights,
    energy: outcome.energy,
  };
}

function countNonFiniteRows(values: Float32Array, rows: number): number {
  const width = values.length / rows;
  let count = 0;
  for (let row = 0; row < rows; row++) {
    if (!values.subarray(row * width, (row + 1) * width).every(Number.isFinite)) count++;
  }
  return count;
}

async function forwardAll(layer: MoELayer, device: Device, hidden: Tensor): Promise<Outcome> {
  const { router, hiddenSize, aggregation } = layer.spec;
  const { topK, experts } = router;
  const tokens = hidden.shape[0] as number;
  const width = outputWidth(aggregation.mode, hiddenSize, topK);
  const values = toFloat32(hidden);
  const output = new Float32Array(tokens * width);
  const ids = new Int32Array(tokens * topK);
  const weights = new Float32Array(tokens * topK);
  const counts = new Int32Array(experts);
  const steps: Record<string, number> = {};
  let seconds = 0;
  using progress = new Progress();
  const energy = new EnergyMonitor(device.energy).begin();
  for (let first = 0; first < tokens; first += BATCH_TOKENS) {
    progress.show(first / tokens, `token ${first} of ${tokens}`);
    const last = Math.min(tokens, first + BATCH_TOKENS);
    const result = await layer
      .forward(
        {
          data: values.subarray(first * hiddenSize, last * hiddenSize),
          shape: [last - first, hiddenSize],
        },
        { routing: true },
      )
      .catch((error: unknown) => {
        // The layer counts rows from the beginning of its batch.
        throw error instanceof InvalidLogitsError
          ? new InvalidLogitsError(first + error.row)
          : error;
      });
    output.set(result.output.data, first * width);
    if (result.routing !== undefined) {
      ids.set(result.routing.ids, first * topK);
      weights.set(result.routing.weights, first * topK);
    }
    result.stats.counts.forEach((count, expert) => {
      counts[expert] = (counts[expert] as number) + count;
    });
    steps[result.stats.mode] = (steps[result.stats.mode] ?? 0) + 1;
    seconds += result.stats.seconds;
  }
  return { output, ids, weights, counts, steps, seconds, energy: await energy.end({ tokens }) };
}
