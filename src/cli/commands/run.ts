/** `nexus run`: one layer of a checkpoint on hidden states from a file. */

import { Command } from "commander";
import {
  jsonOption,
  packWeightsOption,
  path,
  requireGiven,
  wholeNumber,
  withDeviceOptions,
} from "../options.ts";
import type { RunOptions } from "../run/run-layer.ts";
import { printJson } from "../terminal/print.ts";

const DETAILS = `
The checkpoint is a hub-format folder: config.json beside model.safetensors or
its shards. The input tensor is [tokens, hidden] or [batch, sequence, hidden],
in float32, float64, bfloat16 or float16. The output file, which is replaced
if it exists, holds
  output        float32 [tokens, hidden]
  topk_ids      int32   [tokens, k]
  topk_weights  float32 [tokens, k]
The time shown is that of the steps on the device, without reading and writing
files.`;

const REQUIRED = ["checkpoint", "layer", "input", "output"];

export function runCommand(): Command {
  const command = new Command("run")
    .description("Run one MoE layer of a checkpoint on hidden states from a file.")
    .option("--checkpoint <dir>", "checkpoint folder (required)", path)
    .option("--layer <n>", "decoder layer, counted from 0 (required)", wholeNumber(0))
    .option("--input <file>", "safetensors file with the hidden states (required)", path)
    .option("--tensor <name>", "name of the input tensor", "hidden_states")
    .option("--output <file>", "safetensors file to write (required)")
    .addOption(packWeightsOption())
    .addOption(jsonOption());
  return withDeviceOptions(command)
    .addHelpText("after", DETAILS)
    .action(async (options: RunOptions & { json?: boolean }) => {
      requireGiven(command, REQUIRED);
      // Imported when run: help and version need none of it.
      const { runLayer } = await import("../run/run-layer.ts");
      const { printRun } = await import("../run/report.ts");
      const report = await runLayer(options);
      if (options.json) printJson(report);
      else printRun(report);
    });
}
