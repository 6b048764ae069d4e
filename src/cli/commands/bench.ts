/** `nexus bench`: how fast the layer is on this machine, beside the plainest way to run it. */

import { Command, Option } from "commander";
import { POLICY_NAMES, type PolicyName } from "../../control/slices/manager.ts";
import type { DType } from "../../tensor.ts";
import { parseSkew, type RoutingSkew } from "../../workload/popularity.ts";
import { PRESETS, type Preset, presetOf } from "../../workload/presets.ts";
import type { DeviceFlags } from "../device.ts";
import { jsonOption, listOf, positiveNumber, wholeNumber, withDeviceOptions } from "../options.ts";
import { printJson, printLines } from "../terminal/print.ts";
import { styleFor } from "../terminal/style.ts";

const DEFAULT_PRESETS = ["small", "medium"];
/** Decode, a small batch, a prefill. */
const DEFAULT_TOKENS = [1, 16, 256];
const DEFAULT_ROUTING = ["uniform", "zipf:1.0"];
/** Of each way, for each cell. */
const DEFAULT_SECONDS = 0.5;
const MOST_TOKENS = 65_536;
const MOST_STREAMS = 64;

const DETAILS = `
Presets (hidden/intermediate/experts/top-k, weights kept in):
${PRESETS.map(presetLine).join("\n")}

What is timed: one whole call, from hidden states in host memory to outputs in
host memory, for the layer (planned, sliced, on several streams, replayed from
a captured graph) and in turns for a baseline, the row "loop": the same kernels
and weights as a loop over the experts, one after the other on one stream,
eagerly. The outputs of the two are compared first. Times are medians after
warm-up; the spread is half the distance between the quartiles. Weights and
tokens are made up; the batch changes from call to call. GB/s counts the
weights of the experts that a batch uses, once. Skew is the tokens of the
busiest expert over the mean. The last line of a cell is the share of what the
same device reached in this run in a 1024^3 product, and in reading weights for
a single row. JSON holds every sample.`;

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
  readonly json?: boolean;
}

export function benchCommand(): Command {
  const command = new Command("bench")
    .description("Measure the layer's speed beside a plain loop over its experts.")
    .option("--preset <names>", `default: ${DEFAULT_PRESETS.join(",")}`, listOf(presetOf))
    .option(
      "--tokens <list>",
      `tokens of a batch (default: ${DEFAULT_TOKENS.join(",")})`,
      listOf(wholeNumber(1, MOST_TOKENS)),
    )
    .option(
      "--routing <list>",
      `uniform or zipf:S (default: ${DEFAULT_ROUTING.join(",")})`,
      listOf(parseSkew),
    )
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
    .option("--min-time <s>", "seconds of timed calls of each", positiveNumber, DEFAULT_SECONDS)
    .option("--seed <n>", "decides weights and tokens", wholeNumber(0, 2 ** 32 - 1), 1)
    .addOption(jsonOption());
  return withDeviceOptions(command)
    .addHelpText("after", DETAILS)
    .action(async (flags: BenchFlags) => {
      // Imported when run: help and version need none of it.
      const { runBench } = await import("../bench/session.ts");
      const { benchHead, benchPreset } = await import("../bench/report.ts");
      const style = styleFor();
      const show = flags.json ? () => {} : printLines;
      const report = await runBench(
        {
          ...flags,
          presets: flags.preset ?? DEFAULT_PRESETS.map(presetOf),
          tokens: flags.tokens ?? DEFAULT_TOKENS,
          routing: flags.routing ?? DEFAULT_ROUTING.map(parseSkew),
          effort:
            flags.repeat === undefined
              ? { minimumSeconds: flags.minTime }
              : { repeat: flags.repeat },
        },
        {
          onBegin: (head) => show(benchHead(style, head)),
          onPreset: (preset, dtype, cells) => show(benchPreset(style, preset, dtype, cells)),
        },
      );
      if (flags.json) printJson(report);
    });
}

function presetLine(preset: Preset): string {
  const { hiddenSize, intermediateSize, experts, topK } = preset;
  const sizes = `${hiddenSize}/${intermediateSize}/${experts}/${topK}`;
  return `  ${preset.name.padEnd(14)} ${sizes.padEnd(18)} ${preset.dtype}`;
}
