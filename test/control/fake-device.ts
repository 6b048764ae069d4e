/**
 * As much of a device as the graph manager needs, with a log of what it was
 * asked to do. Launches wait until they are let go when `hold` is set.
 */

import type { Device, Graph, Stream, Substitute } from "../../src/execution/device.ts";
import type { Operator } from "../../src/execution/operators.ts";

export class FakeDevice implements Pick<Device, "capture" | "synchronize"> {
  readonly log: string[] = [];
  readonly graphs: FakeGraph[] = [];
  readonly origin: Stream;
  hold = false;
  /** What the next launch or synchronisation fails with. */
  failure: Error | undefined;
  #enqueued = 0;
  readonly #waiting: (() => void)[] = [];

  constructor() {
    const device = this;
    this.origin = {
      group: 3,
      priority: 0,
      enqueue(_operator: Operator) {
        device.#enqueued++;
      },
      record() {},
      wait() {},
      [Symbol.dispose]() {},
    };
  }

  /** Something to record: enqueues as many operators as told. */
  recording(operators: number): () => void {
    return () => {
      for (let i = 0; i < operators; i++) this.origin.enqueue({} as Operator);
    };
  }

  capture(_origin: Stream, record: () => void): Graph {
    const before = this.#enqueued;
    try {
      record();
    } finally {
      // What is captured is not enqueued.
      const nodes = this.#enqueued - before;
      this.#enqueued = before;
      this.log.push(`capture ${nodes}`);
    }
    const graph = new FakeGraph(this, Number(this.log.at(-1)?.split(" ")[1]));
    this.graphs.push(graph);
    return graph;
  }

  async synchronize(): Promise<void> {
    this.log.push(`synchronize ${this.#enqueued}`);
    this.#enqueued = 0;
    await this.work();
  }

  async work(): Promise<void> {
    const { failure } = this;
    this.failure = undefined;
    if (this.hold) await new Promise<void>((resolve) => this.#waiting.push(resolve));
    if (failure !== undefined) throw failure;
  }

  /** Lets everything that is held go. */
  letGo(): void {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}

export class FakeGraph implements Graph {
  readonly nodes: number;
  closed = false;
  inFlight = 0;
  readonly #device: FakeDevice;

  constructor(device: FakeDevice, nodes: number) {
    this.#device = device;
    this.nodes = nodes;
  }

  async launch(substitutes: readonly Substitute[] = []): Promise<void> {
    if (this.closed) throw new Error("launched after it was closed");
    const instead = substitutes.map(({ buffer, by }) => ` ${by.label} for ${buffer.label}`);
    this.#device.log.push(`launch ${this.nodes}${instead.join()}`);
    this.inFlight++;
    try {
      await this.#device.work();
    } finally {
      this.inFlight--;
    }
  }

  [Symbol.dispose](): void {
    if (this.inFlight > 0) throw new Error("closed in flight");
    this.closed = true;
  }
}
