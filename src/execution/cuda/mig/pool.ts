/**
 * One worker process for each MIG instance. CUDA lets a process see one instance at
 * most, so this is how a program uses several: it hands each worker a function from
 * a module of its own, which runs there with the instance as its device, and only
 * plain JSON values go to and fro.
 *
 * The workers and their program live and die together: a worker that dies fails
 * what it was asked for and nothing else; closing the pool ends them all, by force
 * if need be; one that does not open its device is given up after a minute; and each
 * ends by itself when its parent is gone. Idle workers keep no
 * process alive.
 */

import { type ChildProcess, fork } from "node:child_process";
import { resolve as resolvePath } from "node:path";
import { pathToFileURL } from "node:url";
import { shown } from "../../../errors/wording.ts";
import {
  DeviceFailedError,
  DeviceUnavailableError,
  DisposedError,
  InvalidArgumentError,
  NexusError,
} from "../../../errors.ts";
import { type Fields, requireFields } from "../../checks.ts";
import type { DeviceKind, DeviceProperties, MemoryUsage, MigInstance } from "../../device.ts";
import type { NvmlLibrary } from "../nvml/ffi.ts";
import { listInstances } from "./instances.ts";
import type { Answer, Failure, Question, Request } from "./messages.ts";

/** A driver without persistence mode starts a GPU anew, which takes seconds; a worker that needs longer hangs in it. */
const OPEN_MILLISECONDS = 60_000;

/** Closing a CUDA device takes well under a second; a worker that needs longer hangs in the driver. */
const CLOSE_MILLISECONDS = 5_000;

/** How long one that was killed may take to be gone. One that sleeps in the driver takes no signal, and stays. */
const KILL_MILLISECONDS = 2_000;

/** Which MIG instances get a worker process, and what its device is. */
export interface MigPoolOptions {
  /** Of those that `listMigInstances()` gives; default: all. */
  readonly instances?: readonly MigInstance[];
  /** What the workers open. Anything but `"cuda"` is for tests on machines without a GPU. */
  readonly device?: DeviceKind;
}

const OPTIONS: Fields<MigPoolOptions> = { instances: true, device: true };

interface Pending {
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: NexusError) => void;
  /** What failed, in the words of an error message. */
  readonly what: string;
}

/** A process with one MIG instance as its device. */
export class MigWorker implements AsyncDisposable {
  readonly instance: MigInstance;
  readonly #child: ChildProcess;
  readonly #exited: Promise<void>;
  readonly #pending = new Map<number, Pending>();
  #properties: DeviceProperties | undefined;
  #nextId = 0;
  #givenUp = false;
  /** Why nothing can be asked any more. */
  #end: NexusError | undefined;

  private constructor(instance: MigInstance) {
    this.instance = instance;
    this.#child = fork(new URL("./worker.js", import.meta.url), {
      env: { ...process.env, CUDA_VISIBLE_DEVICES: instance.uuid },
      // Flags of this process, such as --input-type, need not make sense for a worker.
      execArgv: [],
    });
    const child = this.#child;
    child.on("message", (answer: Answer) => this.#settle(answer));
    this.#exited = new Promise((resolve) => {
      child.on("error", (cause) => {
        this.#fail(this.#failed(`could not be started: ${cause.message}`, cause));
        resolve();
      });
      child.on("exit", (code, signal) => {
        this.#fail(
          this.#failed(code === null ? `was ended by ${signal}` : `ended with exit code ${code}`),
        );
        resolve();
      });
    });
    this.#hold();
  }

  /** @throws DeviceUnavailableError (as a rejection) if the instance cannot be opened, or not within a minute */
  static async open(instance: MigInstance, device: DeviceKind = "cuda"): Promise<MigWorker> {
    checkInstance(instance);
    const worker = new MigWorker(instance);
    const timer = setTimeout(() => worker.#giveUp(), OPEN_MILLISECONDS);
    try {
      worker.#properties = (await worker.#ask(
        { kind: "open", device },
        "Opening the device",
      )) as DeviceProperties;
      return worker;
    } catch (cause) {
      if (!worker.#givenUp) await worker.close();
      throw new DeviceUnavailableError((cause as Error).message, { cause });
    } finally {
      clearTimeout(timer);
    }
  }

  /** Of the instance as a device. */
  get properties(): DeviceProperties {
    return this.#properties as DeviceProperties;
  }

  /** The worker's process, null where it never started. */
  get pid(): number | null {
    return this.#child.pid ?? null;
  }

  /**
   * Runs a function in the worker: `name(device, argument)` of a module. Functions run
   * one at a time; what they leave on the device and in their modules stays there.
   *
   * @param module path or URL of a JavaScript module; a path means what it means here
   * @param name that the module exports the function by; it may be async
   * @param argument what JSON can carry
   * @returns what the function returns, as JSON carries it
   * @throws NexusError (as a rejection) if the function fails: with its code if it was one, otherwise ERR_WORKER_TASK
   * @throws DeviceFailedError (as a rejection) if the process dies
   * @throws InvalidArgumentError, DisposedError
   */
  async run(module: string | URL, name: string, argument: unknown = null): Promise<unknown> {
    if (typeof module !== "string" && !(module instanceof URL)) {
      throw new InvalidArgumentError(
        `module is ${shown(module)}; it must be the path or the URL of a JavaScript module.`,
      );
    }
    const url =
      module instanceof URL || module.startsWith("file:")
        ? String(module)
        : pathToFileURL(resolvePath(module)).href;
    return this.#ask({ kind: "run", module: url, name, argument }, `"${name}" of ${url}`);
  }

  /** @throws DeviceFailedError, DisposedError (as rejections) */
  async memory(): Promise<MemoryUsage> {
    return (await this.#ask({ kind: "memory" }, "Asking for the memory in use")) as MemoryUsage;
  }

  /**
   * Ends the process, and with it whatever it is doing; resolves when it is gone, or after some seconds where it sleeps in the driver and
   * cannot be ended. Can be called twice.
   */
  async close(): Promise<void> {
    if (this.#end === undefined) {
      // A busy worker would look at the request only when it is done with what nobody wants any more.
      if (this.#pending.size > 0) this.#child.kill("SIGKILL");
      else this.#ask({ kind: "close" }, "Closing").catch(() => undefined);
      this.#fail(new DisposedError(this.#name()));
    }
    this.#child.ref();
    if (await this.#goneWithin(CLOSE_MILLISECONDS)) return;
    this.#child.kill("SIGKILL");
    if (await this.#goneWithin(KILL_MILLISECONDS)) return;
    // It ends when the driver lets it, and holds up nobody meanwhile.
    this.#child.unref();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #ask(request: Request, what: string): Promise<unknown> {
    if (this.#end !== undefined) return Promise.reject(this.#end);
    const question: Question = { id: this.#nextId++, request };
    return new Promise((resolve, reject) => {
      try {
        this.#child.send(question, (error) => {
          // The channel is gone, and the exit that follows tells more.
          if (error !== null) this.#child.kill("SIGKILL");
        });
      } catch (cause) {
        const message = cause instanceof Error ? cause.message : String(cause);
        reject(
          new InvalidArgumentError(`${what} was given what JSON cannot carry: ${message}`, {
            cause,
          }),
        );
        return;
      }
      this.#pending.set(question.id, { resolve, reject, what });
      this.#hold();
    });
  }

  #settle(answer: Answer): void {
    const pending = this.#pending.get(answer.id);
    if (pending === undefined) return;
    this.#pending.delete(answer.id);
    this.#hold();
    if ("failure" in answer) pending.reject(this.#errorOf(pending.what, answer.failure));
    else pending.resolve(answer.value);
  }

  async #goneWithin(milliseconds: number): Promise<boolean> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<false>((resolve) => {
      timer = setTimeout(() => resolve(false), milliseconds);
    });
    const gone = await Promise.race([this.#exited.then(() => true), late]);
    clearTimeout(timer);
    return gone;
  }

  /** Ends the process and does not wait for that: one that sleeps in the driver takes no signal. */
  #giveUp(): void {
    this.#givenUp = true;
    this.#child.kill("SIGKILL");
    this.#fail(
      this.#failed(
        `did not open its device within ${OPEN_MILLISECONDS / 1e3} s. Look at nvidia-smi and the kernel log (dmesg) for what is wrong with the driver`,
      ),
    );
  }

  /** The first failure counts; what comes after it is its consequence. */
  #fail(error: NexusError): void {
    this.#end ??= error;
    for (const { reject } of this.#pending.values()) reject(this.#end);
    this.#pending.clear();
    this.#hold();
  }

  /** Keeps this process alive while an answer is due, and not otherwise. */
  #hold(): void {
    const hold = this.#pending.size > 0 ? "ref" : "unref";
    this.#child[hold]();
    this.#child.channel?.[hold]();
  }

  #errorOf(what: string, { code, message, stack }: Failure): NexusError {
    const cause = new Error(message);
    if (stack !== undefined) cause.stack = stack;
    const text = `${what} failed on ${this.#name()}: ${message}`;
    return new NexusError(code ?? "ERR_WORKER_TASK", text, { cause });
  }

  #failed(how: string, cause?: unknown): DeviceFailedError {
    return new DeviceFailedError(`${this.#name()} ${how}. Open the pool again.`, { cause });
  }

  #name(): string {
    const { uuid, profile, gpu } = this.instance;
    return `The worker on MIG instance ${uuid} (${profile} of GPU ${gpu})`;
  }
}

/** Workers on several MIG instances. */
export class MigPool implements AsyncDisposable {
  readonly workers: readonly MigWorker[];

  constructor(workers: readonly MigWorker[]) {
    this.workers = workers;
  }

  /** Ends all workers; resolves when they are gone, or cannot be ended. Can be called twice. */
  async close(): Promise<void> {
    await Promise.all(this.workers.map((worker) => worker.close()));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/**
 * Starts a worker on every instance.
 *
 * @throws DeviceUnavailableError (as a rejection) if there is no instance or one cannot be opened; none is left running then
 * @throws NvmlError (as a rejection) if NVML fails to list them
 * @throws InvalidArgumentError (as a rejection) for unknown options and what is no instance
 */
export function openMigPool(options: MigPoolOptions = {}): Promise<MigPool> {
  return openPool(options);
}

/** @internal As openMigPool(), on instances of an NVML that is not the machine's. */
export async function openPool(options: MigPoolOptions, library?: NvmlLibrary): Promise<MigPool> {
  requireFields(options, "options", "an object, or left out", OPTIONS);
  const instances = options.instances ?? (await allInstances(library));
  if (!Array.isArray(instances)) {
    throw new InvalidArgumentError(
      `options.instances is ${shown(instances)}; it must be a list of MIG instances, or left out for all.`,
    );
  }
  // All before any: each is a process.
  for (const instance of instances) checkInstance(instance);
  if (instances.length === 0) {
    throw new DeviceUnavailableError("No MIG instance was given. Leave `instances` out for all.");
  }
  const started = await Promise.allSettled(
    instances.map((instance) => MigWorker.open(instance, options.device)),
  );
  const pool = new MigPool(
    started.flatMap((each) => (each.status === "fulfilled" ? [each.value] : [])),
  );
  const failed = started.find((each) => each.status === "rejected");
  if (failed !== undefined) {
    await pool.close();
    throw failed.reason;
  }
  return pool;
}

function checkInstance(instance: MigInstance): void {
  if (typeof instance?.uuid === "string") return;
  throw new InvalidArgumentError(
    `A MIG instance is ${shown(instance)}; it must be one of those that listMigInstances() gives, with its uuid.`,
  );
}

async function allInstances(library?: NvmlLibrary): Promise<readonly MigInstance[]> {
  const { instances, reasons } = await listInstances(library);
  if (instances.length > 0) return instances;
  const why = reasons.length > 0 ? reasons.join(" ") : "NVML lists no GPU.";
  throw new DeviceUnavailableError(`There are no MIG instances to work on. ${why}`);
}
