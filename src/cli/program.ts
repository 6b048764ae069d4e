/** The command line as a whole: name, version, commands, and how usage errors leave it. */

import { Command } from "commander";
import { benchCommand } from "./commands/bench.ts";
import { demoCommand } from "./commands/demo.ts";
import { doctorCommand } from "./commands/doctor.ts";
import { runCommand } from "./commands/run.ts";
import { packageVersion } from "./version.ts";

export function buildProgram(): Command {
  const program = new Command("nexus")
    .description(
      "Runs Mixture-of-Experts layers from Node.js: on the CPU, with nothing to compile.",
    )
    .version(packageVersion(), "-V, --version", "print the version")
    .helpOption("-h, --help", "print help")
    .helpCommand("help [command]", "print help for a command");
  const commands = [demoCommand(), runCommand(), benchCommand(), doctorCommand()];
  for (const command of commands) program.addCommand(command);
  for (const command of [program, ...commands]) {
    // Errors are thrown, to become one line in main.ts; commander would print several.
    command.exitOverride().configureOutput({ outputError: () => {} });
  }
  return program;
}
