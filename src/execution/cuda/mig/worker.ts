/**
 * The process that works on one MIG instance. The pool starts it with
 * `CUDA_VISIBLE_DEVICES` set to the instance, so that the one CUDA device it sees is
 * that; it opens it and does what it is asked, one request at a time.
 *
 * It lives no longer than the channel to its parent: however the parent ends, the
 * channel closes and this process with it, and the driver takes the memory back.
 */

import { DeviceFailedError, InvalidArgumentError, NexusError } from "../../../errors.ts";
import type { Device } from "../../device.ts";
import { openDevice } from "../../open.ts";
import type { Answer, Failure, Question, Request } from "./messages.ts";

let opened: Device | undefined;
let last: Promise<unknown> = Promise.resolve();

process.on("message", (question: Question) => {
  last = last.then(() => answer(question));
});
process.on("disconnect", () => process.exit(1));

async function answer({ id, request }: Question): Promise<void> {
  try {
    await send({ id, value: await handle(request) });
  } catch (error) {
    await send({ id, failure: failureOf(error) });
  }
  if (request.kind === "close") process.exit(0);
}

async function handle(request: Request): Promise<unknown> {
  switch (request.kind) {
    case "open":
      opened = await openDevice({ kind: request.device });
      return opened.properties;
    case "run":
      return run(request.module, request.name, request.argument);
    case "memory":
      return device().memory();
    case "close":
      return opened?.close();
  }
}

async function run(module: string, name: string, argument: unknown): Promise<unknown> {
  const task: unknown = (await import(module))[name];
  if (typeof task !== "function") {
    throw new InvalidArgumentError(`${module} exports no function "${name}".`);
  }
  const result: unknown = await task(device(), argument);
  try {
    JSON.stringify(result);
  } catch (cause) {
    throw new InvalidArgumentError(
      `"${name}" returned what JSON cannot carry: ${failureOf(cause).message}`,
      { cause },
    );
  }
  return result;
}

function device(): Device {
  if (opened !== undefined) return opened;
  throw new DeviceFailedError("The worker was asked for work before its device was opened.");
}

function failureOf(error: unknown): Failure {
  if (!(error instanceof Error)) return { code: null, message: String(error), stack: undefined };
  const code = error instanceof NexusError ? error.code : null;
  return { code, message: error.message, stack: error.stack };
}

/** Resolves when the message is out, so that it is not lost where the process ends next. */
function send(message: Answer): Promise<void> {
  return new Promise((resolve) => {
    process.send?.(message, undefined, undefined, () => resolve());
  });
}
