/**
 * Streams and events, and how what is enqueued on them becomes a recording: steps in
 * the order in which they were asked for, each on a stream. Nothing here calls the
 * driver; issue.ts hands a recording to native streams, eagerly or inside a capture.
 *
 * There is one recorder for eager work, until synchronize() issues it, and one for
 * each capture. As recordings run one after the other, an event from eager work that
 * was submitted earlier holds nobody up.
 */

import { DisposedError, InvalidArgumentError } from "../../errors.ts";
import { requireObject } from "../checks.ts";
import { type DeviceEvent, MAX_GROUPS, type Stream, type StreamOptions } from "../device.ts";
import type { Resource } from "../operator-checks.ts";
import type { Operator } from "../operators.ts";
import { checkStreamOptions } from "../stream-checks.ts";
import type { OwnedOperator } from "./operators/encoder.ts";
import type { Work } from "./work.ts";

/** What streams need of the device they belong to. */
export interface StreamOwner {
  readonly closed: boolean;
  /** Where operators go at this moment. */
  readonly recorder: Recorder;
  /** @throws InvalidArgumentError, DisposedError if the operator cannot be run as it is */
  encode(operator: Operator): OwnedOperator;
}

/** A place on a stream: one `record` of an event, which may be recorded again elsewhere. */
export interface Point {
  readonly recorder: Recorder;
  readonly stream: CudaStream;
  /** Whether another stream waits for it; a point that none waits for needs no event of the driver's. */
  awaited: boolean;
}

export type Step =
  | { readonly kind: "operator"; readonly stream: CudaStream; readonly operator: OwnedOperator }
  | { readonly kind: "record" | "wait"; readonly stream: CudaStream; readonly point: Point };

/** What a recorder took down. */
export interface Recording {
  readonly steps: readonly Step[];
  /** Number of operators in it. */
  readonly operators: number;
  /** The stream it begins on. */
  readonly origin: CudaStream;
  readonly resources: ReadonlySet<Resource>;
  /** By group: streams that do work charged to the group's budget, which they share evenly. */
  readonly streamsOfGroup: readonly number[];
  /** Gives the operators' launches back. It cannot be issued any more. */
  dispose(): void;
}

export class Recorder {
  readonly #steps: Step[] = [];
  readonly #resources = new Set<Resource>();
  readonly #budgeted = new Set<CudaStream>();
  /** Streams that take part in the capture; undefined for eager work, in which all do. */
  readonly #joined: Set<CudaStream> | undefined;
  #origin: CudaStream | undefined;
  #operators = 0;

  /** @param origin the stream a capture begins on; absent: eager work, which begins on its first stream */
  constructor(origin?: CudaStream) {
    this.#origin = origin;
    this.#joined = origin && new Set([origin]);
  }

  get capturing(): boolean {
    return this.#joined !== undefined;
  }

  add(stream: CudaStream, operator: OwnedOperator): void {
    this.#requireJoined(stream, "enqueue on");
    this.#push({ kind: "operator", stream, operator });
    this.#operators += 1;
    for (const resource of operator.resources) this.#resources.add(resource);
    if (operator.work.some(isBudgeted)) this.#budgeted.add(stream);
  }

  record(stream: CudaStream, event: CudaEvent): void {
    this.#requireJoined(stream, "record on");
    const point: Point = { recorder: this, stream, awaited: false };
    this.#push({ kind: "record", stream, point });
    event.point = point;
  }

  wait(stream: CudaStream, event: CudaEvent): void {
    const { point } = event;
    if (point === undefined) {
      throw new InvalidArgumentError(
        `Event "${event.label}" was never recorded. Record it before a stream waits for it.`,
      );
    }
    if (point.recorder !== this) {
      if (this.capturing || point.recorder.capturing) {
        throw new InvalidArgumentError(
          `Event "${event.label}" was recorded ${point.recorder.capturing ? "in a capture" : "outside the capture"} and cannot be waited for ${this.capturing ? "inside this capture" : "outside it"}. Record it where it is waited for.`,
        );
      }
      return;
    }
    // A stream is in order by itself.
    if (point.stream === stream) return;
    this.#joined?.add(stream);
    point.awaited = true;
    this.#push({ kind: "wait", stream, point });
  }

  /** Undefined if no operator was enqueued: then there is nothing to run. */
  finish(): Recording | undefined {
    if (this.#origin === undefined || this.#operators === 0) return undefined;
    const streamsOfGroup = new Array<number>(MAX_GROUPS).fill(0);
    for (const { group } of this.#budgeted)
      streamsOfGroup[group] = 1 + (streamsOfGroup[group] ?? 0);
    return {
      steps: this.#steps,
      operators: this.#operators,
      origin: this.#origin,
      resources: this.#resources,
      streamsOfGroup,
      dispose: () => this.discard(),
    };
  }

  /** Gives back the launches of what was taken down; harmless when repeated. */
  discard(): void {
    for (const step of this.#steps) {
      if (step.kind === "operator") step.operator[Symbol.dispose]();
    }
  }

  #push(step: Step): void {
    this.#origin ??= step.stream;
    this.#steps.push(step);
  }

  #requireJoined(stream: CudaStream, what: string): void {
    if (this.#joined === undefined || this.#joined.has(stream)) return;
    throw new InvalidArgumentError(
      `Cannot ${what} a stream that is not part of the capture. Let it wait for an event recorded on the capture's origin first.`,
    );
  }
}

function isBudgeted(work: Work): boolean {
  return work.kind === "kernel" && work.budgeted;
}

export class CudaEvent implements DeviceEvent {
  readonly owner: StreamOwner;
  readonly label: string;
  /** Where it was last recorded. */
  point: Point | undefined;
  #closed = false;

  constructor(owner: StreamOwner, label: string) {
    this.owner = owner;
    this.label = label;
  }

  get closed(): boolean {
    return this.#closed || this.owner.closed;
  }

  [Symbol.dispose](): void {
    this.#closed = true;
    this.point = undefined;
  }
}

export class CudaStream implements Stream {
  readonly owner: StreamOwner;
  readonly group: number;
  readonly priority: number;
  #closed = false;

  constructor(owner: StreamOwner, options: StreamOptions) {
    checkStreamOptions(options);
    this.owner = owner;
    this.group = options.group;
    this.priority = options.priority;
  }

  get closed(): boolean {
    return this.#closed || this.owner.closed;
  }

  enqueue(operator: Operator): void {
    this.#requireOpen();
    requireObject(operator, "operator", 'an object such as { kind: "bucket", ... }');
    this.owner.recorder.add(this, this.owner.encode(operator));
  }

  record(event: DeviceEvent): void {
    this.#requireOpen();
    this.owner.recorder.record(this, this.#own(event));
  }

  wait(event: DeviceEvent): void {
    this.#requireOpen();
    this.owner.recorder.wait(this, this.#own(event));
  }

  [Symbol.dispose](): void {
    this.#closed = true;
  }

  #requireOpen(): void {
    if (this.closed) throw new DisposedError("The stream");
  }

  #own(event: DeviceEvent): CudaEvent {
    if (!(event instanceof CudaEvent) || event.owner !== this.owner) {
      throw new InvalidArgumentError(
        "The event is not one of this device. Create it with this device's createEvent().",
      );
    }
    if (event.closed) throw new DisposedError(`Event "${event.label}"`);
    return event;
  }
}

/** All that a recording consists of, what is done beside its operators included. */
export function worksOf({ steps }: Recording): readonly Work[] {
  return steps.flatMap((step) =>
    step.kind === "operator" ? [...step.operator.work, ...step.operator.beside] : [],
  );
}
