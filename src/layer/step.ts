/**
 * One step of a layer, laid out on streams: route, buckets, the experts lane by
 * lane, the shared expert beside them, aggregation. This is the only place where
 * the data plane's operators and the control plane's lanes meet; it enqueues and
 * does nothing else, so the same function serves eager runs and captures.
 *
 *     main  ── gate, route, bucket ──┬───────────────────────────┬── combine
 *     lane i                         └── experts of lane i ──────┤
 *     aux   ── shared expert ────────────────────────────────────┘
 */

import { GROUP_OF_SLICE, type SliceId } from "../control/plan.ts";
import { recordAggregation } from "../data/aggregation.ts";
import type { Experts } from "../data/experts.ts";
import type { LayerRouter } from "../data/routing.ts";
import type { SharedExpert } from "../data/shared-expert.ts";
import type { AggregationSpec } from "../data/spec.ts";
import type { StepBuffers } from "../data/step-buffers.ts";
import type { Device, DeviceEvent, Stream } from "../execution/device.ts";
import type { BucketOperator } from "../execution/operators.ts";

/** Which slice each lane belongs to and how urgent it is. */
export interface LaneLayout {
  readonly sliceOfLane: readonly SliceId[];
  readonly priorityOfLane: readonly number[];
}

/** The auxiliary slice's streams come first where claims are equal: everything waits for routing. */
const AUX_PRIORITY = 1_000;

/** The streams and events of a step, for one layout of lanes. */
export class StepStreams implements Disposable {
  readonly main: Stream;
  readonly aux: Stream;
  readonly lanes: readonly Stream[];
  readonly begun: DeviceEvent;
  readonly bucketed: DeviceEvent;
  readonly sharedDone: DeviceEvent;
  readonly laneDone: readonly DeviceEvent[];

  constructor(device: Device, layout: LaneLayout) {
    const auxGroup = GROUP_OF_SLICE.D;
    this.main = device.createStream({
      group: auxGroup,
      priority: AUX_PRIORITY,
    });
    this.aux = device.createStream({ group: auxGroup, priority: 0 });
    this.lanes = layout.sliceOfLane.map((slice, lane) =>
      device.createStream({
        group: GROUP_OF_SLICE[slice],
        priority: layout.priorityOfLane[lane] ?? 0,
      }),
    );
    this.begun = device.createEvent("step begun");
    this.bucketed = device.createEvent("tokens bucketed");
    this.sharedDone = device.createEvent("shared expert done");
    this.laneDone = this.lanes.map((_, lane) => device.createEvent(`lane ${lane} done`));
  }

  [Symbol.dispose](): void {
    for (const each of [this.main, this.aux, ...this.lanes]) each[Symbol.dispose]();
    for (const each of [this.begun, this.bucketed, this.sharedDone, ...this.laneDone]) {
      each[Symbol.dispose]();
    }
  }
}

/** What a step is made of. */
export interface StepParts {
  /** How ids, weights and buckets come about: by routing, or from ids that are in place already. */
  readonly routing: LayerRouter | GivenRouting;
  readonly experts: Experts;
  readonly shared?: SharedExpert;
  readonly topK: number;
  readonly aggregation: AggregationSpec;
}

/** Enqueues one step; nothing has run when it returns. */
export function recordStep(streams: StepStreams, parts: StepParts, buffers: StepBuffers): void {
  const { main, aux, lanes } = streams;
  main.record(streams.begun);
  if (parts.shared !== undefined) {
    aux.wait(streams.begun);
    parts.shared.record(aux, buffers);
    aux.record(streams.sharedDone);
  }
  parts.routing.record(main, buffers, lanes.length);
  main.record(streams.bucketed);
  const inputScale = parts.aggregation.weightsApplyTo === "input" ? buffers.weights : undefined;
  lanes.forEach((stream, lane) => {
    stream.wait(streams.bucketed);
    parts.experts.record(stream, buffers.hidden, buffers.inner, buffers.rows, {
      from: "bucket",
      buckets: buffers.buckets,
      lane,
      topK: parts.topK,
      ...(inputScale && { inputScale }),
      busy: buffers.busy,
    });
    stream.record(streams.laneDone[lane] as DeviceEvent);
  });
  for (const done of streams.laneDone) main.wait(done);
  if (parts.shared !== undefined) main.wait(streams.sharedDone);
  const sizes = { hiddenSize: parts.experts.spec.hiddenSize, topK: parts.topK };
  recordAggregation(main, parts.aggregation, sizes, buffers);
}

/** Routing that was done before: ids and weights are in the buffers, only the buckets are built. */
export class GivenRouting {
  readonly #bucket: Pick<BucketOperator, "experts" | "topK" | "capacityFactor">;

  constructor(bucket: Pick<BucketOperator, "experts" | "topK" | "capacityFactor">) {
    this.#bucket = bucket;
  }

  record(stream: Stream, buffers: StepBuffers, lanes: number): void {
    const { tokens, ids, buckets } = buffers;
    stream.enqueue({
      kind: "bucket",
      ...this.#bucket,
      lanes,
      tokens,
      ids,
      buckets,
    });
  }
}
