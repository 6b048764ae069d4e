/**
 * Values of command-line options: read, checked, and refused with a sentence
 * that says what would be right. Shared by the commands.
 */

import { type Command, InvalidArgumentError as InvalidOptionError, Option } from "commander";
import { quote } from "../errors/wording.ts";
import { InvalidArgumentError } from "../errors.ts";
import type { Packing } from "../execution/device.ts";

/** Reads a whole number of `least` to `most`. */
export function wholeNumber(least: number, most = Number.MAX_SAFE_INTEGER) {
  return (text: string): number => {
    const value = Number(text);
    if (/^[+-]?\d+$/.test(text) && value >= least && value <= most) return value;
    const range = most === Number.MAX_SAFE_INTEGER ? `${least} or more` : `${least} to ${most}`;
    throw new InvalidOptionError(`It must be a whole number, ${range}.`);
  };
}

/** Reads how weights are to be packed: instead of the plain ones, or beside them. */
function packing(text: string): Packing {
  if (text === "instead") return true;
  if (text === "beside") return text;
  throw new InvalidOptionError("It must be instead or beside.");
}

/** Reads a path, which may be any text but none at all. */
export function path(text: string): string {
  if (text !== "") return text;
  throw new InvalidOptionError("It names nothing.");
}

/** Reads a number greater than 0. */
export function positiveNumber(text: string): number {
  const value = Number(text);
  if (text.trim() !== "" && Number.isFinite(value) && value > 0) return value;
  throw new InvalidOptionError("It must be a number greater than 0.");
}

/** Reads values separated by commas; the option may also be repeated, which adds to them. */
export function listOf<T>(read: (text: string) => T) {
  return (text: string, previous: readonly T[] | undefined): readonly T[] => [
    ...(previous ?? []),
    ...text.split(",").map((part) => refusedAsOption(() => read(part.trim()), part.trim(), text)),
  ];
}

/**
 * Ends with a usage error unless all of these options are given. (Commander's own required options are asked for before unknown ones are
 * refused, so that a misspelt one would be called missing.)
 */
export function requireGiven(command: Command, names: readonly string[]): void {
  const missing = command.options.filter((option) => {
    const name = option.attributeName();
    return names.includes(name) && command.getOptionValue(name) === undefined;
  });
  if (missing.length === 0) return;
  const flags = missing.map((option) => `'${option.flags}'`).join(", ");
  command.error(`required option${missing.length > 1 ? "s" : ""} ${flags} not specified`);
}

export function deviceOption(description: string): Option {
  return new Option("--device <kind>", description)
    .choices(["auto", "cpu", "cuda"])
    .default("auto");
}

/** The options of every command that opens a device. */
export function withDeviceOptions(command: Command): Command {
  return command
    .addOption(deviceOption("where to run"))
    .option(
      "--threads <n>",
      "worker threads of the CPU device (default: all)",
      wholeNumber(1, 1024),
    )
    .option("--gpu <n>", "which GPU, counted from 0 (default: the first)", wholeNumber(0))
    .addOption(
      new Option(
        "--float32 <how>",
        "how a GPU, if one is used, multiplies float32 (default: ieee)",
      ).choices(["ieee", "tf32"]),
    );
}

export function packWeightsOption(): Option {
  return new Option(
    "--pack-weights <how>",
    "keep the routed experts' bfloat16 weights in 12 bits each, without loss, instead of or beside those as they are (GPU of sm_90)",
  ).argParser(packing);
}

export function jsonOption(): Option {
  return new Option("--json", "print one JSON document instead of text");
}

/** Turns Nexus's complaint about a part of a list into commander's, which names the option and the whole of it. */
function refusedAsOption<T>(read: () => T, part: string, whole: string): T {
  try {
    return read();
  } catch (error) {
    if (error instanceof InvalidArgumentError) throw new InvalidOptionError(error.message);
    if (error instanceof InvalidOptionError && part !== whole) {
      throw new InvalidOptionError(`${quote(part)} will not do. ${error.message}`);
    }
    throw error;
  }
}
