/**
 * The fake driver's streams, events, captures and graphs. A stream is a queue; whenever
 * somebody asks whether an event is done, a few steps of what can run do run, drawn at
 * random. The nodes of a graph run in any order that their edges allow.
 */

import type { Extent, Partition } from "../../../src/execution/cuda/driver/driver.ts";
import { CudaError } from "../../../src/execution/cuda/driver/errors.ts";
import { randomFor } from "../../support/seed.ts";
import { FakeCalls, failed } from "./fake-calls.ts";

interface FakeEvent {
  readonly timing: boolean;
  /** How often it was recorded on a stream, and for how many of these the stream has come that far. */
  recorded: number;
  done: number;
  /** Milliseconds of the fake's own clock. */
  time: number;
  captured: { readonly capture: Capture; readonly after: ReadonlySet<Node> } | undefined;
}

export interface FakeStream {
  readonly handle: bigint;
  readonly priority: number;
  readonly partition: Partition | undefined;
  readonly queue: Queued[];
  capture: Capture | undefined;
  after: Set<Node>;
  /** Whether a kernel was put on it last, with no wait since. */
  afterKernel: boolean;
}

/** Something in a stream's queue. */
interface Queued {
  ready(): boolean;
  /** Runs a step of it. @returns whether that was the last */
  step(): boolean;
}

/** A kernel's parameter as it was when it was launched or its node was changed. */
export type Parameter = (index: number, bytes: number) => DataView;

/** What of a launch a graph's nodes can be given anew. */
export interface NodeLaunch {
  readonly grid: Extent;
  /** Kernels have them. */
  readonly parameter?: Parameter;
}

const NO_KERNEL: NodeLaunch = { grid: { x: 1, y: 1, z: 1 } };

interface Node {
  readonly handle: bigint;
  readonly after: ReadonlySet<Node>;
  readonly run: (launch: NodeLaunch) => void;
  readonly launch: NodeLaunch;
  /** Of a kernel: reads parameters that are written down elsewhere. */
  readonly freeze: ((params: bigint) => Parameter) | undefined;
}

interface Capture {
  readonly origin: FakeStream;
  readonly nodes: Node[];
  readonly streams: Set<FakeStream>;
  invalid: boolean;
}

interface Exec {
  readonly nodes: readonly Node[];
  readonly launches: Map<Node, NodeLaunch>;
}

/** Most steps that run between two questions. */
const MOST_STEPS = 6;

export class FakeStreams extends FakeCalls {
  /** Nothing runs while this is set. */
  stalled = false;
  protected readonly streams = new Map<bigint, FakeStream>();
  readonly #random = randomFor("fake driver");
  readonly #events = new Map<bigint, FakeEvent>();
  readonly #graphs = new Map<bigint, Node[]>();
  readonly #execs = new Map<bigint, Exec>();
  #clock = 0;
  #faulty = false;

  /** Makes the next thing that runs touch memory that is not there, which ends the context. */
  breakDown(): void {
    this.#faulty = true;
  }

  /** Objects that were made and not destroyed. */
  get live(): Readonly<Record<string, number>> {
    return {
      streams: this.streams.size,
      events: this.#events.size,
      graphs: this.#graphs.size,
      execs: this.#execs.size,
    };
  }

  destroyStream(stream: bigint): void {
    if (!this.streams.delete(stream)) throw new Error("A stream is destroyed that is not there.");
    this.call("destroyStream");
  }

  synchronizeStream(stream: bigint): void {
    this.call("synchronizeStream");
    while (this.stream(stream).queue.length > 0) this.run();
  }

  createEvent(timing: boolean): bigint {
    this.call("createEvent");
    const handle = this.handle();
    this.#events.set(handle, { timing, recorded: 0, done: 0, time: 0, captured: undefined });
    return handle;
  }

  destroyEvent(event: bigint): void {
    if (!this.#events.delete(event)) throw new Error("An event is destroyed that is not there.");
    this.call("destroyEvent");
  }

  recordEvent(handle: bigint, stream: bigint): void {
    this.call("recordEvent");
    const event = this.event(handle);
    const { capture, after, queue } = this.stream(stream);
    if (capture !== undefined) {
      event.captured = { capture, after: new Set(after) };
      return;
    }
    event.captured = undefined;
    event.recorded += 1;
    const version = event.recorded;
    queue.push({
      ready: () => true,
      step: () => {
        event.done = version;
        event.time = this.#clock;
        return true;
      },
    });
  }

  waitEvent(handle: bigint, waited: bigint): void {
    this.call("waitEvent");
    const event = this.event(waited);
    const stream = this.stream(handle);
    stream.afterKernel = false;
    if (event.captured !== undefined) {
      const { capture, after } = event.captured;
      // Of a capture that is over, or another one.
      if (!capture.streams.has(capture.origin)) throw failed("waitEvent", 1);
      if (stream.capture !== undefined && stream.capture !== capture)
        throw failed("waitEvent", 905);
      stream.capture = capture;
      capture.streams.add(stream);
      for (const node of after) stream.after.add(node);
      return;
    }
    if (stream.capture !== undefined) {
      stream.capture.invalid = true;
      throw failed("waitEvent", 907);
    }
    const version = event.recorded;
    stream.queue.push({ ready: () => event.done >= version, step: () => true });
  }

  eventDone(handle: bigint): boolean {
    this.call("eventDone");
    const event = this.event(handle);
    if (event.captured !== undefined) throw failed("eventDone", 907);
    if (!this.stalled) {
      const steps = 1 + this.#random.integer(MOST_STEPS);
      for (let step = 0; step < steps && event.done < event.recorded; step++) this.run();
    }
    return event.done >= event.recorded;
  }

  elapsedMilliseconds(from: bigint, to: bigint): number {
    this.call("elapsedMilliseconds");
    const [a, b] = [this.event(from), this.event(to)];
    if (!a.timing || !b.timing) throw failed("elapsedMilliseconds", 400);
    if (a.done < a.recorded || b.done < b.recorded) throw failed("elapsedMilliseconds", 600);
    return b.time - a.time;
  }

  beginCapture(handle: bigint): void {
    this.call("beginCapture");
    const stream = this.stream(handle);
    if (stream.capture !== undefined) throw failed("beginCapture", 1);
    stream.capture = { origin: stream, nodes: [], streams: new Set([stream]), invalid: false };
    stream.after = new Set();
  }

  lastCapturedNode(stream: bigint): bigint {
    this.call("lastCapturedNode");
    const { capture, after } = this.stream(stream);
    const [node] = after;
    if (capture === undefined || node === undefined || after.size !== 1) {
      throw new Error("The stream was not given a node by its last call.");
    }
    return node.handle;
  }

  endCapture(handle: bigint): bigint {
    const { capture, after } = this.stream(handle);
    if (capture === undefined || capture.origin.handle !== handle) throw failed("endCapture", 903);
    const joined = ancestors(after);
    const streams = [...capture.streams];
    const loose = streams.some((stream) => [...stream.after].some((node) => !joined.has(node)));
    for (const stream of streams) {
      stream.capture = undefined;
      stream.after = new Set();
    }
    capture.streams.clear();
    // Whatever it says, the capture is over.
    this.call("endCapture");
    if (capture.invalid) throw failed("endCapture", 901);
    if (loose) throw failed("endCapture", 904);
    const graph = this.handle();
    this.#graphs.set(graph, capture.nodes);
    return graph;
  }

  instantiateGraph(graph: bigint): bigint {
    this.call("instantiateGraph");
    const nodes = this.#graphs.get(graph);
    if (nodes === undefined) throw failed("instantiateGraph", 1);
    const exec = this.handle();
    this.#execs.set(exec, {
      nodes: [...nodes],
      launches: new Map(nodes.map((node) => [node, node.launch])),
    });
    return exec;
  }

  uploadGraph(): void {
    this.call("uploadGraph");
  }

  launchGraph(handle: bigint, stream: bigint): void {
    this.call("launchGraph");
    const exec = this.#execs.get(handle);
    if (exec === undefined) throw failed("launchGraph", 1);
    const launches = new Map(exec.launches);
    const waiting = new Set(exec.nodes);
    this.stream(stream).queue.push({
      ready: () => true,
      step: () => {
        const ready = [...waiting].filter(({ after }) => [...after].every((n) => !waiting.has(n)));
        const node = ready[this.#random.integer(Math.max(1, ready.length))];
        if (node !== undefined) {
          waiting.delete(node);
          node.run(launches.get(node) as NodeLaunch);
        }
        return waiting.size === 0;
      },
    });
  }

  setNodeLaunch(handle: bigint, node: bigint, grid: Extent, params: bigint): void {
    this.call("setNodeLaunch");
    const exec = this.#execs.get(handle);
    const found = exec?.nodes.find((each) => each.handle === node);
    if (exec === undefined || found?.freeze === undefined) throw failed("setNodeLaunch", 1);
    exec.launches.set(found, { grid, parameter: found.freeze(params) });
  }

  destroyGraph(graph: bigint): void {
    if (!this.#graphs.delete(graph)) throw new Error("A graph is destroyed that is not there.");
    this.call("destroyGraph");
  }

  destroyGraphExec(exec: bigint): void {
    if (!this.#execs.delete(exec)) throw new Error("A graph is destroyed that is not there.");
    this.call("destroyGraphExec");
  }

  /** Runs one step of something that can run. */
  protected run(): void {
    const ready = [...this.streams.values()].filter(({ queue }) => queue[0]?.ready() === true);
    const stream = ready[this.#random.integer(Math.max(1, ready.length))];
    const head = stream?.queue[0];
    if (stream === undefined || head === undefined) return;
    this.#clock += 1;
    try {
      if (this.#faulty) throw new Error("Broken down.");
      if (head.step()) stream.queue.shift();
    } catch (cause) {
      this.lost = new CudaError("cuEventQuery", 700, "CUDA_ERROR_ILLEGAL_ADDRESS", String(cause));
      throw this.lost;
    }
  }

  /** Puts something on a stream, or into the capture that it is part of. @param freeze of a kernel */
  protected enqueue(
    handle: bigint,
    run: (launch: NodeLaunch) => void,
    launch: NodeLaunch = NO_KERNEL,
    freeze?: (params: bigint) => Parameter,
  ): void {
    const stream = this.stream(handle);
    const { capture } = stream;
    stream.afterKernel = false;
    if (capture === undefined) {
      stream.queue.push({
        ready: () => true,
        step: () => {
          run(launch);
          return true;
        },
      });
      return;
    }
    const node = {
      handle: this.handle(),
      after: new Set(stream.after),
      run,
      launch,
      // No node of a green context can be changed.
      freeze: stream.partition === undefined ? freeze : undefined,
    };
    capture.nodes.push(node);
    stream.after = new Set([node]);
  }

  protected newStream(priority: number, partition: Partition | undefined): bigint {
    const handle = this.handle();
    this.streams.set(handle, {
      handle,
      priority,
      partition,
      queue: [],
      capture: undefined,
      after: new Set<Node>(),
      afterKernel: false,
    });
    return handle;
  }

  protected stream(handle: bigint): FakeStream {
    const stream = this.streams.get(handle);
    if (stream === undefined) throw failed("a call with a stream", 400);
    return stream;
  }

  protected event(handle: bigint): FakeEvent {
    const event = this.#events.get(handle);
    if (event === undefined) throw failed("a call with an event", 400);
    return event;
  }
}

function ancestors(of: ReadonlySet<Node>): ReadonlySet<Node> {
  const found = new Set<Node>();
  const left = [...of];
  for (let node = left.pop(); node !== undefined; node = left.pop()) {
    if (found.has(node)) continue;
    found.add(node);
    left.push(...node.after);
  }
  return found;
}
