/** `nexus doctor`: what this machine has, what Nexus will use of it, what to do about the rest. */

import { Command } from "commander";
import { jsonOption } from "../options.ts";

export function doctorCommand(): Command {
  return new Command("doctor")
    .description("Show what this machine has and what Nexus will use.")
    .addOption(jsonOption())
    .action(async ({ json = false }: { json?: boolean }) => {
      // Imported when run: help and version need none of it.
      const { runDoctor } = await import("../doctor.ts");
      const { probeMachine } = await import("../../execution/probe.ts");
      process.exitCode = runDoctor({ json, stdout: process.stdout }, await probeMachine());
    });
}
