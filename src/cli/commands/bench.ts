/**
 * `nexus bench`: how fast the layer is on this machine, beside the plainest way to run it;
 * and what moved between two such measurements.
 */

import { Command, Option } from "commander";
import { POLICY_NAMES, type PolicyName } from "../../control/slices/manager.ts";
import { InvalidArgumentError } from "../../errors.ts";
import type { DType } from "../../tensor.ts";
import { parseSkew, type RoutingSkew } from "../../workload/popularity.ts";
import { PRESETS, type Preset, presetOf } from "../../workload/presets.ts";
import type { BenchOptions } from "../bench/session.ts";
import type { DeviceFlags } from "../device.ts";
import {
  jsonOption,
  listOf,
  packWeightsOption,
  positiveNumber,
  wholeNumber,
  withDeviceOptions,
} from "../options.ts";
import { printJson, printLines } from "../terminal/print.ts";
import { styleFor } from "../terminal/style.ts";

/** Of each way, for each cell. */
const DEFAULT_SECONDS = 0.5;
const MOST_TOKENS = 65_536;
const MOST_STREAMS = 64;

const DETAILS = `
Presets (hidden/intermediate/experts/top-k, weights kept in):
${PRESETS.map(presetLine).join("\n")}

Without --preset and --tokens: small and medium at 1, 16 and 256 tokens on a
CPU; qwen3-30b-a3b and mixtral-8x7b at 1, 64 and 1024 tokens on a GPU.

What is timed: one whole call for the layer (planned, sliced, replayed from a
captured graph) and in turns for a baseline, the row "loop": the same kernels
and weights as a loop over the experts, one after the other on one stream,
eagerly. The outputs of the two are compared first. A call goes from hidden
states to outputs, in host memory on a CPU and in device memory on a GPU; there
the row "graph" is one replay of the step alone, by the GPU's own clock. Times
are medians after warm-up; the spread is half the distance between the
quartiles, and ~ marks a ratio of times that are no farther apart than that.
Weights and tokens are made up; the batch changes from call to call.
GB/s counts the weights of the experts that a batch uses, once. Skew is the
tokens of the busiest expert over the mean. The last line of a cell is the
share of what the same device reached in this run, before or after: with these
kernels in one large product, and in reading weights for a single row (CPU) or
copying within device memory (GPU, bytes read and written). JSON holds every
sample.

--ablation takes the step apart instead: experts one by one, then fused kernels,
a captured graph, slices by load, and streams (--streams, default 8), each
measured against the one before, with tokens per joule where the device counts
joules, and the share of the limit that leaves the longer time. Default:
zipf:1.0; small at 1, 16 and 256 tokens on a CPU, qwen3-30b-a3b at 1, 64, 1024
and 8192 on a GPU.

--compare sets two results side by side, both of "nexus bench --json" or both of
the benchmark of peers, and shows what moved beyond the noise. Noise is 1 %, or
more where the files show more: between blocks of neighbouring samples, and
between two measurements of Nexus in the same rounds. A rank test between the
blocks must also rule out chance at 99 %. Exit code 0 whatever moved.`;

interface BenchFlags extends DeviceFlags {
  readonly preset?: readonly Preset[];
  readonly tokens?: readonly number[];
  readonly routing?: readonly RoutingSkew[];
  readonly dtype?: DType;
  readonly streams?: number;
  readonly policy?: PolicyName;
  readonly repeat?: number;
  readonly minTime: number;
  readonly seed: number;
  readonly ablation?: boolean;
  readonly compare?: readonly string[];
  readonly json?: boolean;
}

export function benchCommand(): Command {
  const command = new Command("bench")
    .description("Measure the layer's speed beside a plain loop over its experts.")
    .option("--preset <names>", "layers, from the list below", listOf(presetOf))
    .option(
      "--tokens <list>",
      "tokens of a batch, of one or several",
      listOf(wholeNumber(1, MOST_TOKENS)),
    )
    .option("--routing <list>", "uniform or zipf:S (default: uniform,zipf:1.0)", listOf(parseSkew))
    .addOption(
      new Option("--dtype <type>", "element type of the weights (default: the preset's)").choices([
        "float32",
        "bfloat16",
        "float16",
      ]),
    )
    .option("--streams <n>", "streams of the layer", wholeNumber(1, MOST_STREAMS))
    .addOption(new Option("--policy <name>", "slice policy of the layer").choices(POLICY_NAMES))
    .addOption(new Option("--repeat <n>", "timed calls of each").argParser(wholeNumber(1, 1000)))
    .addOption(
      new Option("--min-time <s>", "seconds of timed calls of each")
        .argParser(positiveNumber)
        .default(DEFAULT_SECONDS)
        .conflicts("repeat"),
    )
    .option("--seed <n>", "decides weights and tokens", wholeNumber(0, 2 ** 32 - 1), 1)
    .option("--ablation", "take the step apart: what each part of the design brings")
    .addOption(packWeightsOption())
    .addOption(compareOption())
    .addOption(jsonOption());
  return withDeviceOptions(command)
    .addHelpText("after", DETAILS)
    .action(async (flags: BenchFlags) => {
      const { preset, repeat, minTime, ablation, compare, json, ...rest } = flags;
      const show = json ? () => {} : printLines;
      if (compare) {
        const comparison = await compareFiles(compare, show);
        if (json) printJson(comparison);
        return;
      }
      const options = {
        ...rest,
        ...(preset && { presets: preset }),
        effort: repeat === undefined ? { minimumSeconds: minTime } : { repeat },
      };
      const report = await (ablation ? takeApart(options, show) : measure(options, show));
      if (json) printJson(report);
    });
}

type Show = (lines: readonly string[]) => void;

// Sessions and reports are imported when run: help and version need none of them.

async function measure(options: BenchOptions, show: Show): Promise<object> {
  const { runBench } = await import("../bench/session.ts");
  const { benchHead, benchPreset } = await import("../bench/report.ts");
  const style = styleFor();
  return runBench(options, {
    onBegin: (head) => show(benchHead(style, head)),
    onPreset: (head, preset, dtype, cells) => show(benchPreset(style, head, preset, dtype, cells)),
  });
}

async function takeApart(options: BenchOptions, show: Show): Promise<object> {
  const { runAblation } = await import("../ablation/session.ts");
  const { ablationHead, ablationTable } = await import("../ablation/report.ts");
  const style = styleFor();
  return runAblation(options, {
    onBegin: (head) => show(ablationHead(style, head)),
    onResult: (head, result) => show(ablationTable(style, head, result)),
  });
}

/** Nothing is measured: whatever says what and how to measure contradicts it. */
function compareOption(): Option {
  return new Option(
    "--compare <files...>",
    "measure nothing: show what moved from one result to another",
  ).conflicts([
    "preset",
    "tokens",
    "routing",
    "dtype",
    "streams",
    "policy",
    "repeat",
    "minTime",
    "seed",
    "ablation",
    "device",
    "threads",
    "gpu",
    "float32",
    "packWeights",
  ]);
}

async function compareFiles(files: readonly string[], show: Show): Promise<object> {
  const [a, b] = files;
  if (a === undefined || b === undefined || files.length > 2) {
    throw new InvalidArgumentError(
      `--compare takes two files, A.json and B.json; ${files.length} given.`,
    );
  }
  const { readResults } = await import("../compare/results.ts");
  const { compare } = await import("../compare/compare.ts");
  const { comparisonReport } = await import("../compare/report.ts");
  const comparison = compare(await readResults(a), await readResults(b));
  show(comparisonReport(styleFor(), comparison));
  return comparison;
}

function presetLine(preset: Preset): string {
  const { hiddenSize, intermediateSize, experts, topK } = preset;
  const sizes = `${hiddenSize}/${intermediateSize}/${experts}/${topK}`;
  return `  ${preset.name.padEnd(14)} ${sizes.padEnd(18)} ${preset.dtype}`;
}
