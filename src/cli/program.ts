/** The command line as a whole: name, version, commands, and how usage errors leave it. */

import { Command } from "commander";
import { benchCommand } from "./commands/bench.ts";
import { demoCommand } from "./commands/demo.ts";
import { doctorCommand } from "./commands/doctor.ts";
import { runCommand } from "./commands/run.ts";
import { UNKNOWN_COMMAND } from "./failure.ts";
import { packageVersion } from "./version.ts";

export function buildProgram(): Command {
  const program = new Command("nexus")
    .description(
      "Runs Mixture-of-Experts layers from Node.js: on a GPU or the CPU, with nothing to compile.",
    )
    .version(packageVersion(), "-V, --version", "print the version")
    .helpOption("-h, --help", "print help")
    .helpCommand(false);
  const commands = [demoCommand(), runCommand(), benchCommand(), doctorCommand()];
  commands.push(helpCommand(program));
  for (const command of commands) program.addCommand(command);
  for (const command of [program, ...commands]) {
    // Errors are thrown, to become one line in main.ts; commander would print several.
    command.exitOverride().configureOutput({ outputError: () => {} });
  }
  return program;
}

/** Commander's own prints the whole help for a command that is not there. */
function helpCommand(program: Command): Command {
  return new Command("help")
    .description("print help for a command")
    .argument("[command]")
    .action((name?: string) => {
      const isNamed = (command: Command) => command.name() === name;
      const topic = name === undefined ? program : program.commands.find(isNamed);
      if (topic === undefined) {
        return program.error(`unknown command '${name}'`, { code: UNKNOWN_COMMAND });
      }
      return topic.help();
    });
}
