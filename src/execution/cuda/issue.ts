/**
 * Issues a recording on native streams: the one way in which operators reach the GPU.
 * Run as it is, the work starts; run inside a capture, the very same calls make a
 * graph. So eager work and replay are the same launches in the same order.
 *
 * The origin of a recording is the launch stream itself where it can be. Every other
 * stream forks from the point where the recording begins, at its first use, and is
 * joined at the end.
 *
 * Work that nothing in the step waits for is put off: tidying up until a kernel on the same
 * stream that does it along with its own work (if none comes an operator does its own, where it can), everything
 * else until the recording's last operator, beside which it goes to a side stream. Not sooner: a persistent kernel fills every
 * multiprocessor, and a block of anything else that sits there when it starts holds up one of
 * its own, and with that all of it.
 */

import type { CudaBudgets } from "./budgets.ts";
import type { AccessWindow, Driver } from "./driver/driver.ts";
import type { EventPool } from "./driver/events.ts";
import type { KernelValues } from "./launch/launch.ts";
import type { CudaStream, Point, Recording, Step } from "./recorder.ts";
import type { NativeStreams } from "./streams.ts";
import type { EncodedOperator, KernelWork, Work } from "./work.ts";

export interface IssueSite {
  readonly driver: Driver;
  readonly streams: NativeStreams;
  /** Events without timing. */
  readonly events: EventPool;
  /** How many multiprocessors the device has. */
  readonly multiprocessors: number;
  /** Longest range of memory that an access-policy window covers, in bytes. */
  readonly maxWindowBytes: number;
}

/** A kernel as it was issued. */
export interface IssuedKernel {
  readonly work: KernelWork;
  readonly group: number;
  /** Streams that share the group's budget. */
  readonly streams: number;
}

/** Work that was put off. */
interface Later {
  readonly work: Work;
  /** Whose it is. */
  readonly stream: bigint;
  /** The event that it comes after. */
  readonly after: bigint;
}

/** The side stream's priority, of all the highest: a block or two, and the launch is not over before they are. */
const SIDE_PRIORITY = Number.MAX_SAFE_INTEGER;

/**
 * @param issued told of every kernel of an operator's work, right after its launch
 * @throws CudaError if the driver refuses something; what was issued before it is not taken back
 */
export function issue(
  recording: Recording,
  site: IssueSite,
  budgets: CudaBudgets,
  issued?: (kernel: IssuedKernel, stream: bigint) => void,
): void {
  const issuer = new Issuer(recording, site, budgets, issued);
  try {
    issuer.run();
  } finally {
    site.streams.returnAll();
    issuer.returnEvents();
  }
}

/**
 * Hands one piece of work to a stream.
 *
 * @param multiprocessors how many a kernel may fill
 * @param dependent whether what is in front of it on the stream is a kernel, beside whose end it may start
 */
export function issueWork(
  driver: Driver,
  work: Work,
  stream: bigint,
  multiprocessors: number,
  dependent = false,
): void {
  switch (work.kind) {
    case "kernel": {
      const { launch } = work;
      launch.setStream(stream);
      launch.setBlocks(work.blocks(multiprocessors));
      launch.setDependent(dependent);
      driver.launchKernel(launch.config, launch.fn, launch.params);
      break;
    }
    case "fill":
      driver.fillWords(work.address, work.value, work.words, stream);
      break;
    case "copy":
      driver.copyOnDevice(work.target, work.source, work.bytes, stream);
      break;
    case "mirror":
      driver.copyToHost(work.target, work.source, work.bytes, stream);
      break;
  }
}

class Issuer {
  readonly #recording: Recording;
  readonly #site: IssueSite;
  readonly #budgets: CudaBudgets;
  readonly #issued: ((kernel: IssuedKernel, stream: bigint) => void) | undefined;
  readonly #native = new Map<CudaStream, bigint>();
  readonly #points = new Map<Point, bigint>();
  readonly #events: bigint[] = [];
  /** Of native streams on which a kernel was issued last, that kernel. */
  readonly #afterKernel = new Map<bigint, KernelWork>();
  /** Where the recording begins. */
  readonly #begin: bigint;
  #side: bigint | undefined;
  readonly #later: Later[] = [];
  /** Streams on which kernels have tidied up, along with their own work or as a part of it. */
  readonly #tidied = new Set<bigint>();

  constructor(
    recording: Recording,
    site: IssueSite,
    budgets: CudaBudgets,
    issued: ((kernel: IssuedKernel, stream: bigint) => void) | undefined,
  ) {
    this.#recording = recording;
    this.#site = site;
    this.#budgets = budgets;
    this.#issued = issued;
    this.#begin = this.#event();
  }

  run(): void {
    const { driver, streams } = this.#site;
    driver.recordEvent(this.#begin, streams.launch);
    const { steps } = this.#recording;
    const last = steps.findLast((step) => step.kind === "operator");
    for (const [at, step] of steps.entries()) {
      const stream = this.#nativeOf(step.stream);
      if (step.kind === "operator") {
        const { work, beside, afterBeside } = step.operator;
        const taken = !afterBeside && this.#tidyAlong(work, stream);
        if (step === last || afterBeside) this.#doLater(step === last ? stream : undefined);
        if (afterBeside) this.#afterBeside(stream);
        const left = taken ? beside : this.#tidyOwn(step.operator, at, stream);
        for (const item of work) this.#work(item, step.stream, stream);
        if (left.length > 0) this.#putOff(left, stream);
      } else if (step.kind === "wait") {
        this.#wait(stream, this.#points.get(step.point) as bigint);
      } else if (step.point.awaited) {
        const event = this.#event();
        driver.recordEvent(event, stream);
        this.#points.set(step.point, event);
      }
    }
    this.#doLater();
    for (const stream of this.#native.values()) {
      if (stream !== streams.launch) this.#order(stream, streams.launch);
    }
    if (this.#side !== undefined) this.#order(this.#side, streams.launch);
  }

  /** A wait that was issued keeps to the record that came before it, so events are free once all is issued. */
  returnEvents(): void {
    for (const event of this.#events) this.#site.events.give(event);
  }

  #event(): bigint {
    const event = this.#site.events.take();
    this.#events.push(event);
    return event;
  }

  #nativeOf(stream: CudaStream): bigint {
    let native = this.#native.get(stream);
    if (native !== undefined) return native;
    const { streams, driver } = this.#site;
    const partition = this.#budgets.partitionOf(stream.group);
    const plain = partition === undefined && streams.native(stream.priority) === streams.native(0);
    if (stream === this.#recording.origin && plain) {
      native = streams.launch;
    } else {
      native = streams.lend(stream.priority, partition);
      driver.waitEvent(native, this.#begin);
    }
    this.#native.set(stream, native);
    return native;
  }

  #work(work: Work, stream: CudaStream, native: bigint): void {
    const { driver, multiprocessors } = this.#site;
    if (work.kind !== "kernel") {
      this.#afterKernel.delete(native);
      issueWork(driver, work, native, multiprocessors);
      return;
    }
    const { group } = stream;
    const streams = this.#recording.streamsOfGroup[group] ?? 1;
    const share = work.budgeted ? this.#budgets.shareOf(group, streams) : multiprocessors;
    // A graph keeps what was so when it was captured: new budgets change its grids and no edges.
    const front = this.#afterKernel.get(native);
    const dependent = front !== undefined && work.early(work.blocks(share), front);
    this.#afterKernel.set(native, work);
    if (work.budgeted) work.launch.setWindow(this.#windowOf(work, group));
    issueWork(driver, work, native, share, dependent);
    if (work.tidies) this.#tidied.add(native);
    this.#issued?.({ work, group, streams }, native);
  }

  /**
   * The part of a group's weights that its cache budget has room for. Which lines those are is the
   * hardware's choice, by hit ratio: experts that are asked for often are found again, others are not.
   */
  #windowOf({ weights }: KernelWork, group: number): AccessWindow | null {
    const room = this.#budgets.cacheOf(group);
    if (room === 0 || weights === undefined) return null;
    const bytes = Math.min(weights.bytes, this.#site.maxWindowBytes);
    const hitRatio = Math.min(1, room / this.#weightBytesOf(group));
    return bytes === 0 ? null : { address: weights.address, bytes, hitRatio };
  }

  /** Bytes of all the weights that a group's kernels read in this recording. */
  #weightBytesOf(group: number): number {
    const ranges = new Map<bigint, number>();
    for (const step of this.#recording.steps) {
      if (step.kind !== "operator" || step.stream.group !== group) continue;
      for (const work of step.operator.work) {
        if (work.kind === "kernel" && work.weights !== undefined) {
          ranges.set(work.weights.address, work.weights.bytes);
        }
      }
    }
    return [...ranges.values()].reduce((sum, bytes) => sum + bytes, 0);
  }

  #putOff(beside: readonly Work[], stream: bigint): void {
    const after = this.#mark(stream);
    for (const work of beside) this.#later.push({ work, stream, after });
  }

  /** Hands tidying that was put off on the stream to a kernel of this work that does it along with its own. @returns whether there was any */
  #tidyAlong(work: readonly Work[], stream: bigint): boolean {
    const kernel = kernelThat("tidiesUp", work);
    if (kernel === undefined) return false;
    for (const [at, later] of this.#later.entries()) {
      const tidying = later.stream === stream ? tidyingOf(later.work) : undefined;
      if (tidying === undefined) continue;
      kernel.launch.setValues(tidying);
      this.#later.splice(at, 1);
      this.#tidied.add(stream);
      return true;
    }
    return false;
  }

  /** Has an operator's own kernel do its tidying, if it can and none does later. @returns what is left to do beside it */
  #tidyOwn({ work, beside }: EncodedOperator, at: number, stream: bigint): readonly Work[] {
    const kernel = kernelThat("tidiesOwn", work);
    const tidy = beside.find((item) => tidyingOf(item) !== undefined);
    const tidying = tidy && tidyingOf(tidy);
    if (kernel === undefined || tidying === undefined) return beside;
    if (tidiedLater(this.#recording.steps, at)) return beside;
    kernel.launch.setValues(tidying);
    this.#tidied.add(stream);
    return beside.filter((item) => item !== tidy);
  }

  /** Lets this stream wait for all that was put off and is issued. */
  #afterBeside(stream: bigint): void {
    if (this.#side !== undefined) this.#order(this.#side, stream);
    for (const tidied of this.#tidied) {
      if (tidied !== stream) this.#order(tidied, stream);
    }
  }

  /** Issues what was put off. @param not not before what is on this stream */
  #doLater(not?: bigint): void {
    if (this.#later.length === 0) return;
    const { driver, streams, multiprocessors } = this.#site;
    this.#side ??= streams.lend(SIDE_PRIORITY, undefined);
    if (not !== undefined) this.#order(not, this.#side);
    let waited: bigint | undefined;
    for (const { work, after } of this.#later.splice(0)) {
      if (after !== waited) driver.waitEvent(this.#side, after);
      waited = after;
      issueWork(driver, work, this.#side, multiprocessors);
    }
  }

  /** What comes on `after` from here on runs once what is on `before` so far is done. */
  #order(before: bigint, after: bigint): void {
    this.#wait(after, this.#mark(before));
  }

  #wait(stream: bigint, event: bigint): void {
    this.#afterKernel.delete(stream);
    this.#site.driver.waitEvent(stream, event);
  }

  #mark(stream: bigint): bigint {
    const event = this.#event();
    this.#site.driver.recordEvent(event, stream);
    return event;
  }
}

/** Whether a kernel that comes after this step on its stream tidies up along with its own work, before anything waits for that. */
function tidiedLater(steps: readonly Step[], at: number): boolean {
  for (let i = at + 1; i < steps.length; i++) {
    const step = steps[i] as Step;
    if (step.kind !== "operator") continue;
    if (step.operator.afterBeside) return false;
    if (step.stream !== steps[at]?.stream) continue;
    if (kernelThat("tidiesUp", step.operator.work) !== undefined) return true;
  }
  return false;
}

function kernelThat(
  ability: "tidiesUp" | "tidiesOwn",
  work: readonly Work[],
): KernelWork | undefined {
  return work.find((item): item is KernelWork => item.kind === "kernel" && item[ability] === true);
}

function tidyingOf(work: Work): KernelValues | undefined {
  return work.kind === "kernel" ? work.tidying : undefined;
}
