#!/usr/bin/env node
/**
 * The `nexus` command: runs one command line and turns whatever happens into an
 * exit code and at most one line on standard error. The commands are in commands/.
 */

import { EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, failureOf } from "./failure.ts";
import { buildProgram } from "./program.ts";
import { takesEscapes } from "./terminal/style.ts";

const ERASE_LINE = "\r\u001b[2K";

function end(error: unknown, command: string | undefined): number {
  const { exitCode, line } = failureOf(error, command);
  if (line !== "") process.stderr.write(`${line}\n`);
  if (exitCode !== EXIT_OK && process.env["NEXUS_DEBUG"] === "1") {
    process.stderr.write(`${error instanceof Error ? error.stack : String(error)}\n`);
  }
  return exitCode;
}

// `nexus ... | head` closes the pipe early; that is no failure of ours, but what failed before is.
for (const stream of [process.stdout, process.stderr]) {
  stream.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code === "EPIPE") process.exit(process.exitCode ?? EXIT_OK);
    if (stream === process.stdout) {
      process.stderr.write(`nexus: cannot write to standard output (${error.code}).\n`);
    }
    process.exit(EXIT_FAILED);
  });
}
process.on("SIGINT", () => {
  if (takesEscapes(process.stderr)) process.stderr.write(ERASE_LINE);
  process.exit(EXIT_INTERRUPTED);
});
for (const event of ["uncaughtException", "unhandledRejection"]) {
  process.on(event, (error: unknown) => process.exit(end(error, undefined)));
}

const program = buildProgram();
try {
  await program.parseAsync();
  process.exitCode ??= EXIT_OK;
} catch (error) {
  const [command] = process.argv.slice(2);
  const known = program.commands.some((each) => each.name() === command);
  process.exitCode = end(error, known ? command : undefined);
}
