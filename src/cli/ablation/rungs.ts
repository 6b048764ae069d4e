/**
 * The same batches through the same weights in five ways, each with one thing more
 * than the one before: experts one by one; all experts in one launch for each product;
 * the step as a captured graph; experts on slices by load; slices spread over streams.
 */

import { computeBudgetsOf, EXPERT_SLICE_IDS, type Plan } from "../../control/plan.ts";
import { type PolicyName, SliceManager } from "../../control/slices/manager.ts";
import { StreamScheduler } from "../../control/stream-scheduler.ts";
import type { Graph } from "../../execution/device.ts";
import { BareStep, type LoadedLayer, oneLane, type StepLayout } from "../bench/bare-step.ts";
import type { Inputs } from "../bench/inputs.ts";
import { SequentialLayer } from "../bench/sequential.ts";

/** What each way adds to the one before, first to last. */
export const RUNGS = {
  loop: "experts one after the other, eagerly, on one stream; their counts come to the host first",
  fused: "all experts in one launch for each product",
  graph: "the step replayed from a captured graph",
  slices: "hot, warm and cold experts by load, a stream and a budget for each slice in use",
  streams: "the slices' experts spread over more streams",
} as const;

export type RungName = keyof typeof RUNGS;

/** A way to run a step. */
export interface Rung extends Disposable {
  readonly name: RungName;
  /** Streams that its experts run on. */
  readonly streams: number;
  /** Runs the batch whose turn it is, from hidden states on the device to outputs there. */
  run(turn: number): Promise<void>;
  /** float32 [T, H]: what it puts out for a batch. */
  output(turn: number): Promise<Float32Array>;
  /** Of every batch, where the rung has any. */
  readonly graphs: readonly Graph[];
}

export interface RungOptions {
  readonly tokens: number;
  /** Streams of the last rung. */
  readonly streams: number;
  readonly policy?: PolicyName;
}

/** How the rungs are made, first to last; each is to be closed before the next is made, for its memory. */
export function rungsOf(
  layer: LoadedLayer,
  inputs: Inputs,
  batches: number,
  counts: Int32Array,
  { tokens, streams, policy }: RungOptions,
): readonly (() => Promise<Rung>)[] {
  const { device, modules } = layer;
  const plan = new SliceManager({
    device: device.properties,
    expertBytes: modules.parts.experts.expertBytes,
    ...(policy !== undefined && { policy }),
  }).allocate({ counts });
  const inUse = EXPERT_SLICE_IDS.filter((id) => plan.slices[id].experts.length > 0);
  const steps = (name: RungName, layout: StepLayout) => (): Promise<Rung> =>
    stepRung(layer, inputs, batches, { name, layout, tokens });
  return [
    () => sequentialRung(layer, inputs, batches, tokens),
    steps("fused", oneLane(layer)),
    steps("graph", oneLane(layer)),
    steps("slices", layoutOf(plan, inUse.length)),
    steps("streams", layoutOf(plan, streams)),
  ];
}

function layoutOf(plan: Plan, streams: number): StepLayout {
  const assignment = new StreamScheduler({ streams }).assign(plan);
  return { ...assignment, budgets: computeBudgetsOf(plan) };
}

async function sequentialRung(
  layer: LoadedLayer,
  inputs: Inputs,
  batches: number,
  tokens: number,
): Promise<Rung> {
  const loops: SequentialLayer[] = [];
  const dispose = () => {
    for (const loop of loops) loop[Symbol.dispose]();
  };
  const at = (turn: number) => loops[turn % batches] as SequentialLayer;
  try {
    for (let i = 0; i < batches; i++) {
      loops.push(new SequentialLayer(layer, tokens));
      await at(i).write(inputs.at(i));
    }
  } catch (error) {
    dispose();
    throw error;
  }
  return {
    name: "loop",
    streams: 1,
    run: (turn) => at(turn).run(),
    output: (turn) => at(turn).output(),
    graphs: [],
    [Symbol.dispose]: dispose,
  };
}

async function stepRung(
  layer: LoadedLayer,
  inputs: Inputs,
  batches: number,
  rung: {
    readonly name: RungName;
    readonly layout: StepLayout;
    readonly tokens: number;
  },
): Promise<Rung> {
  const { name, layout, tokens } = rung;
  const asGraph = name !== "fused";
  const steps: BareStep[] = [];
  const dispose = () => {
    for (const step of steps) step[Symbol.dispose]();
  };
  const at = (turn: number) => steps[turn % batches] as BareStep;
  try {
    for (let i = 0; i < batches; i++) {
      steps.push(new BareStep(layer, layout, { tokens }));
      await at(i).write(inputs.at(i));
      await at(i).run();
    }
    return {
      name,
      streams: layout.sliceOfLane.length,
      run: (turn) => (asGraph ? at(turn).replay() : at(turn).run()),
      output: async (turn) => (await at(turn).output()).data as Float32Array,
      graphs: asGraph ? steps.map((step) => step.graph) : [],
      [Symbol.dispose]: dispose,
    };
  } catch (error) {
    dispose();
    throw error;
  }
}
