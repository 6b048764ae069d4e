/**
 * One step of a layer, laid out on streams: route, buckets, the experts lane by
 * lane, the shared expert beside them, aggregation. This is the only place where
 * the data plane's operators and the control plane's lanes meet; it enqueues and
 * does nothing else, so the same function serves eager runs and captures.
 *
 *     main  ── gate, route, bucket ──┬───────────────────────────┬── combine
 *     lane i                         └── experts of lane i ──────┤
 *     aux   ── shared expert ────────────────────────────────────┘
 *
 * where a single lane is the main stream itself. For a handful of tokens, where the device has an operator for them:
 *
 *     main  ── gate ── decode (which routes)
 *
 * or, with a shared expert,
 *
 *     main  ── gate, route ──┬── decode
 *     aux   ── shared expert ┘
 */

import { GROUP_OF_SLICE, type SliceId, UNBUDGETED_GROUP } from "../control/plan.ts";
import { type OutputScope, recordAggregation } from "../data/aggregation.ts";
import { recordDecode } from "../data/decode.ts";
import type { Experts } from "../data/experts.ts";
import type { RoutingScope, StepRouting } from "../data/routing.ts";
import type { SharedExpert } from "../data/shared-expert.ts";
import type { AggregationSpec } from "../data/spec.ts";
import type { StepBuffers } from "../data/step-buffers.ts";
import type { Device, DeviceEvent, Stream } from "../execution/device.ts";

/** Which slice each lane belongs to and how urgent it is. */
export interface LaneLayout {
  readonly sliceOfLane: readonly SliceId[];
  readonly priorityOfLane: readonly number[];
}

/** The main stream comes first where claims are equal: everything waits for routing. */
const MAIN_PRIORITY = 1_000;

/** The streams and events of a step, for one layout of lanes. */
export class StepStreams implements Disposable {
  readonly main: Stream;
  readonly aux: Stream;
  /** One each, or `main` for a single one. */
  readonly lanes: readonly Stream[];
  readonly begun: DeviceEvent;
  readonly bucketed: DeviceEvent;
  readonly sharedDone: DeviceEvent;
  readonly laneDone: readonly DeviceEvent[];

  constructor(device: Device, layout: LaneLayout) {
    // The lanes wait for routing and aggregation waits for the lanes: beside the shared expert at
    // most nothing else runs then, so a budget would leave the rest of the device idle.
    this.main = device.createStream({ group: UNBUDGETED_GROUP, priority: MAIN_PRIORITY });
    this.aux = device.createStream({ group: GROUP_OF_SLICE.D, priority: 0 });
    // A single lane serves all slices, one after the other: none of their budgets is its. And its first
    // product follows routing on one stream, where a kernel can start early.
    const single = layout.sliceOfLane.length === 1;
    this.lanes = single
      ? [this.main]
      : layout.sliceOfLane.map((slice, lane) =>
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
    for (const each of new Set([this.main, this.aux, ...this.lanes])) each[Symbol.dispose]();
    for (const each of [this.begun, this.bucketed, this.sharedDone, ...this.laneDone]) {
      each[Symbol.dispose]();
    }
  }
}

/** What a step is made of. */
export interface StepParts {
  readonly routing: StepRouting;
  readonly experts: Experts;
  readonly shared?: SharedExpert;
  readonly topK: number;
  readonly aggregation: AggregationSpec;
  /** Up to so many tokens the experts are a single `decode` operator; from `decodeTokensOf`, 0 for never. */
  readonly decodeTokens: number;
}

/** What differs from step to step. */
export type StepScope = OutputScope & Pick<RoutingScope, "logitsType">;

/** Enqueues one step; nothing has run when it returns. */
export function recordStep(
  streams: StepStreams,
  parts: StepParts,
  buffers: StepBuffers,
  scope: StepScope,
): void {
  const { main, aux } = streams;
  main.record(streams.begun);
  if (parts.shared !== undefined) {
    aux.wait(streams.begun);
    parts.shared.record(aux, buffers, scope.mostTokens);
    aux.record(streams.sharedDone);
  }
  const { mostTokens, logitsType } = scope;
  const routing = { mostTokens, ...(logitsType && { logitsType }) };
  if (mostTokens <= parts.decodeTokens) {
    if (parts.shared === undefined) {
      const route = parts.routing.recordUpToRoute(main, buffers, routing);
      recordDecode(main, parts, buffers, scope, route);
    } else {
      // Decode waits for the shared expert, and routing need not.
      parts.routing.record(main, buffers, routing);
      main.wait(streams.sharedDone);
      recordDecode(main, parts, buffers, scope);
    }
    return;
  }
  recordLanes(streams, parts, buffers, routing);
  if (parts.shared !== undefined) main.wait(streams.sharedDone);
  recordAggregation(main, parts.aggregation, parts, buffers, scope);
}

/** Routing, buckets, and the experts lane by lane. */
function recordLanes(
  streams: StepStreams,
  parts: StepParts,
  buffers: StepBuffers,
  routing: RoutingScope,
): void {
  const { main, lanes } = streams;
  const { mostTokens } = routing;
  parts.routing.record(main, buffers, { ...routing, lanes: lanes.length });
  main.record(streams.bucketed);
  const inputScale = parts.aggregation.weightsApplyTo === "input" ? buffers.weights : undefined;
  lanes.forEach((stream, lane) => {
    stream.wait(streams.bucketed);
    parts.experts.record(stream, buffers.hidden, buffers.inner, buffers.rows, {
      from: "bucket",
      buckets: buffers.buckets,
      lane,
      lanes: lanes.length,
      topK: parts.topK,
      mostTokens,
      ...(inputScale && { inputScale }),
      ...(buffers.busy && { busy: buffers.busy }),
    });
    stream.record(streams.laneDone[lane] as DeviceEvent);
  });
  for (const done of streams.laneDone) main.wait(done);
}
