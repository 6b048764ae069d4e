/** Checks a place to write to before any work is done, so that no result is lost for want of a folder. */

import { access, constants, readdir, realpath, stat } from "node:fs/promises";
import path from "node:path";
import { writableTarget } from "../../checkpoint/index.ts";
import { InvalidArgumentError } from "../../errors.ts";

/**
 * @param inputs files that must not be overwritten
 * @throws InvalidArgumentError if `output` cannot be written, or is one of the inputs
 */
export async function checkOutputFile(output: string, inputs: readonly string[]): Promise<void> {
  const found = await stat(output).catch(() => undefined);
  if (found?.isDirectory()) {
    throw new InvalidArgumentError(`--output ${output} is a folder. Name a file.`);
  }
  if (output === "" || output.endsWith(path.sep)) {
    throw new InvalidArgumentError(`--output "${output}" names no file.`);
  }
  const target = await writableTarget(output);
  const folder = path.dirname(target);
  try {
    if (!(await stat(folder)).isDirectory()) {
      throw Object.assign(new Error("not a folder"), { code: "ENOTDIR" });
    }
    await access(folder, constants.W_OK);
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    throw new InvalidArgumentError(
      `Cannot write --output ${output}: the folder ${folder} does not exist or may not be written to (${code}).`,
      { cause },
    );
  }
  if (found === undefined) return;
  for (const input of inputs) {
    if (target !== (await realpath(input).catch(() => undefined))) continue;
    throw new InvalidArgumentError(
      `--output ${output} would overwrite what is read. Choose another file.`,
    );
  }
}

/** Files beside a checkpoint's own that are called as weights are: of another way to split them, say. No output may replace them. */
export async function weightFiles(directory: string): Promise<string[]> {
  const names = await readdir(directory);
  return names
    .filter((name) => /^model.*\.safetensors/.test(name))
    .map((name) => path.join(directory, name));
}
