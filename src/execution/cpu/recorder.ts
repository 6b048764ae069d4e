/**
 * Streams and events, and how what is enqueued on them becomes a program.
 *
 * A recorder takes down operators in the order in which they are enqueued, and
 * for each what it waits for: the last operator on its stream, and whatever the
 * stream has waited for since. There is one recorder for eager work, until
 * synchronize() submits it, and one for each capture. As programs run one after
 * the other, an event from eager work that was submitted earlier holds nobody up.
 */

import { DisposedError, InvalidArgumentError } from "../../errors.ts";
import { requireObject } from "../checks.ts";
import type { DeviceEvent, Stream, StreamOptions } from "../device.ts";
import type { Resource } from "../operator-checks.ts";
import type { Operator } from "../operators.ts";
import { checkStreamOptions } from "../stream-checks.ts";
import type { ProgramNode } from "./program.ts";

/** An operator whose arguments are checked and written down. */
export interface EncodedOperator {
  readonly kind: number;
  readonly words: Int32Array;
  readonly resources: readonly Resource[];
}

/** What streams need of the device they belong to. */
export interface StreamOwner {
  readonly closed: boolean;
  /** Where operators go at this moment. */
  readonly recorder: Recorder;
  /** @throws InvalidArgumentError, DisposedError if the operator cannot be run as it is */
  encode(operator: Operator): EncodedOperator;
}

export class Recorder {
  readonly nodes: ProgramNode[] = [];
  readonly resources = new Set<Resource>();
  /** What the next operator on a stream waits for: indices of nodes. */
  readonly #tails = new Map<CpuStream, readonly number[]>();
  /** Streams that take part in the capture; undefined for eager work, in which all do. */
  readonly #joined: Set<CpuStream> | undefined;

  /** @param origin the stream a capture begins on; absent: eager work */
  constructor(origin?: CpuStream) {
    this.#joined = origin && new Set([origin]);
  }

  get capturing(): boolean {
    return this.#joined !== undefined;
  }

  add(stream: CpuStream, { kind, words, resources }: EncodedOperator): void {
    this.#requireJoined(stream, "enqueue on");
    const { group, priority } = stream;
    const predecessors = this.#tails.get(stream) ?? [];
    this.#tails.set(stream, [this.nodes.length]);
    this.nodes.push({ kind, group, priority, predecessors, words });
    for (const resource of resources) this.resources.add(resource);
  }

  record(stream: CpuStream, event: CpuEvent): void {
    this.#requireJoined(stream, "record on");
    event.point = { recorder: this, tail: this.#tails.get(stream) ?? [] };
  }

  wait(stream: CpuStream, event: CpuEvent): void {
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
    this.#joined?.add(stream);
    const tail = new Set([...(this.#tails.get(stream) ?? []), ...point.tail]);
    this.#tails.set(stream, [...tail]);
  }

  #requireJoined(stream: CpuStream, what: string): void {
    if (this.#joined === undefined || this.#joined.has(stream)) return;
    throw new InvalidArgumentError(
      `Cannot ${what} a stream that is not part of the capture. Let it wait for an event recorded on the capture's origin first.`,
    );
  }
}

export class CpuEvent implements DeviceEvent {
  readonly owner: StreamOwner;
  readonly label: string;
  /** Where it was last recorded. */
  point: { readonly recorder: Recorder; readonly tail: readonly number[] } | undefined;
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

export class CpuStream implements Stream {
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

  #own(event: DeviceEvent): CpuEvent {
    if (!(event instanceof CpuEvent) || event.owner !== this.owner) {
      throw new InvalidArgumentError(
        "The event is not one of this device. Create it with this device's createEvent().",
      );
    }
    if (event.closed) throw new DisposedError(`Event "${event.label}"`);
    return event;
  }
}
