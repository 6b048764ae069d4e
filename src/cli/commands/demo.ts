/** `nexus demo`: the whole system on a synthetic workload, in a few seconds. */

import { Command } from "commander";
import type { DemoOptions } from "../demo/session.ts";
import { IncorrectResultError } from "../failure.ts";
import { jsonOption, wholeNumber, withDeviceOptions } from "../options.ts";
import { printJson } from "../terminal/print.ts";

export function demoCommand(): Command {
  const command = new Command("demo")
    .description("See a skewed workload routed, sliced, run, measured and checked.")
    .option("--seed <n>", "decides weights and tokens", wholeNumber(0, 2 ** 32 - 1), 1)
    .addOption(jsonOption());
  return withDeviceOptions(command).action(async (options: DemoOptions & { json?: boolean }) => {
    // Imported when run: help and version need none of it.
    const { runDemo } = await import("../demo/session.ts");
    const { printDemo } = await import("../demo/report.ts");
    const report = await runDemo(options);
    if (options.json) printJson(report);
    else printDemo(report);
    if (report.correct) return;
    throw new IncorrectResultError(
      `the output differs from the float64 reference by ${report.check.relativeError}, more than ${report.check.bound}.`,
    );
  });
}
