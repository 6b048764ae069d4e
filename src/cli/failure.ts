/**
 * From anything thrown to what a person sees: one line and an exit code.
 *
 *     0  done
 *     1  a device failed, a result was wrong, or Nexus has a bug
 *     2  what was asked for cannot be done: flags, files, values, sizes, devices
 *   130  interrupted
 */

import { CommanderError } from "commander";
import { UNPRINTABLE } from "../errors/wording.ts";
import { DeviceFailedError, DisposedError, NexusError } from "../errors.ts";

export const EXIT_OK = 0;
export const EXIT_FAILED = 1;
export const EXIT_BAD_INPUT = 2;
/** 128 and the number of SIGINT, as shells report it. */
export const EXIT_INTERRUPTED = 130;

/** Commander's code for a command that is not there. */
export const UNKNOWN_COMMAND = "commander.unknownCommand";

/** Longest line that standard error gets; whatever is longer is some forged value, not an explanation. */
const MOST_CHARACTERS = 500;

export interface Failure {
  readonly exitCode: number;
  /** One line for standard error; empty if there is nothing to say. */
  readonly line: string;
}

/** A result did not match what it was checked against. */
export class IncorrectResultError extends NexusError {
  constructor(message: string) {
    super("ERR_INCORRECT_RESULT", message);
  }
}

/** @param command the command that was running, for the hint on usage errors */
export function failureOf(error: unknown, command: string | undefined): Failure {
  if (error instanceof CommanderError) {
    // Help and version come this way too, after they were printed; help unasked for, if no command was given.
    if (error.exitCode === 0) return { exitCode: EXIT_OK, line: "" };
    if (error.code === "commander.help") return { exitCode: EXIT_BAD_INPUT, line: "" };
    const usage = error.message.replace(/^error: /, "").replace(/\.$/, "");
    // `nexus help x` has no help of its own to point to for an x that is no command.
    const topic = command === undefined || error.code === UNKNOWN_COMMAND ? "" : `${command} `;
    return bad(`${usage}. See "nexus ${topic}--help".`);
  }
  if (error instanceof DeviceFailedError || error instanceof IncorrectResultError) {
    return { exitCode: EXIT_FAILED, line: lineOf(error.message) };
  }
  if (error instanceof NexusError && !(error instanceof DisposedError)) return bad(error.message);
  const message = error instanceof Error ? error.message : String(error);
  return {
    exitCode: EXIT_FAILED,
    line: lineOf(`unexpected error: ${message} (set NEXUS_DEBUG=1 to see where it came from)`),
  };
}

function bad(message: string): Failure {
  return { exitCode: EXIT_BAD_INPUT, line: lineOf(message) };
}

/** Messages quote what is foreign; should one not, it still cannot command the terminal or flood it. */
function lineOf(message: string): string {
  const line = message
    .replace(/\s*[\r\n]\s*/g, " ")
    .replace(UNPRINTABLE, "")
    .trim();
  const cut = line.length > MOST_CHARACTERS ? `${line.slice(0, MOST_CHARACTERS)}...` : line;
  return `nexus: ${cut}`;
}
