/**
 * What the control plane is worth where the load drifts: a trace of steps whose hot experts
 * change every few hundred, run by layers that differ in nothing but streams and slice policy.
 *
 *   node bench/compare/drift.mjs [--json FILE] [--device cuda|cpu] [--preset NAME] [--tokens N]
 *                                [--steps N] [--change-every N] [--rounds N]
 *
 * Every layer is given the same batches in the same order: hidden states and logits in device
 * memory, Zipf 1.2, and with every phase of the trace other experts popular. The layers run the
 * whole trace in turn, several rounds of it, so that whatever else the machine does falls on all;
 * profiles and plans live on from round to round, as they would in use. A step is a whole call of
 * `forward`, from the batch's tensors to an output tensor, as the host sees it.
 *
 * `afterChangeUs` is what a change costs: the time that the first steps of a phase take beyond as
 * many of the phase's usual steps, which are the median of those that follow.
 */

import { writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import {
  DeviceTensor,
  EnergyMonitor,
  ExpertPopularity,
  FilledLayer,
  layerSpecOf,
  MoELayer,
  makeLogits,
  openDevice,
  parseSkew,
  presetOf,
  quantile,
  Random,
  roundToBfloat16,
  summaryOf,
} from "../gpu/support.mjs";
import { printTable } from "../print-table.mjs";

const FORMS = [
  { name: "default", options: {} },
  ...["adaptive", "proportional", "dynamic", "static"].map((policy) => ({
    name: `3 streams, ${policy}`,
    options: { streams: 3, slices: { policy } },
  })),
];
const SKEW = parseSkew("zipf:1.2");
/** Batches of a phase, which take turns: a step's experts are not those of the step before. */
const BATCHES = 16;
/** Steps after a change that count as its aftermath: two plans and a half. */
const AFTERMATH = 20;
/** Before anything is timed: graphs are captured, and plans made. */
const WARM_UP_STEPS = 40;
const SEED = 1;
const DEFAULT_PRESET = { cuda: "qwen3-30b-a3b", cpu: "small" };

const { values: options } = parseArgs({
  options: {
    json: { type: "string" },
    device: { type: "string", default: "cuda" },
    preset: { type: "string" },
    tokens: { type: "string", default: "256" },
    steps: { type: "string", default: "3000" },
    "change-every": { type: "string", default: "300" },
    rounds: { type: "string", default: "3" },
  },
});
const [tokens, steps, changeEvery, rounds] = ["tokens", "steps", "change-every", "rounds"].map(
  (name) => Number(options[name]),
);
for (const [name, value, least] of [
  ["tokens", tokens, 1],
  ["rounds", rounds, 1],
  // A phase must last longer than what counts as its beginning.
  ["change-every", changeEvery, AFTERMATH + 1],
  ["steps", steps, changeEvery],
]) {
  if (Number.isInteger(value) && value >= least) continue;
  console.error(`--${name} is "${options[name]}". Use a whole number, ${least} or more.`);
  process.exit(2);
}
const phases = Math.floor(steps / changeEvery);

/** The batches of every phase, on the device. Phases share hidden states: logits alone decide who is hot. */
function makeTrace(device, preset, dtype) {
  const random = new Random(SEED);
  const upload = (tensor) => DeviceTensor.fromHost(device, tensor);
  const hidden = Array.from({ length: BATCHES }, () => {
    const values = random.fillNormal(new Float32Array(tokens * preset.hiddenSize));
    const shape = [tokens, preset.hiddenSize];
    if (dtype === "float32") return upload({ dtype, shape, data: values });
    const bits = new Uint32Array(values.map(roundToBfloat16).buffer);
    return upload({ dtype, shape, data: Uint16Array.from(bits, (each) => each >>> 16) });
  });
  return Array.from({ length: phases }, () => {
    const popularity = ExpertPopularity.draw(SKEW, preset.experts, random);
    return hidden.map((each) => ({
      hidden: each,
      logits: upload(makeLogits(popularity, tokens, random)),
    }));
  });
}

/** One form of the layer, and what was seen of it. */
class Contender {
  name;
  layer;
  control;
  /** Microseconds of every step, by phase, one round after the other. */
  phaseSamples = [];
  plans = 0;
  plansChanged = 0;
  joules = 0;
  energyTokens = 0;
  #plan;

  static async open({ name, options }, device, preset, dtype) {
    const it = new Contender();
    it.name = name;
    const weights = new FilledLayer(preset, dtype, SEED);
    it.layer = new MoELayer(layerSpecOf(preset, dtype), weights, { ...options, device });
    it.control = await it.layer.control;
    it.#plan = it.control.plan;
    return it;
  }

  /** Runs one step. @returns microseconds */
  async step({ hidden, logits }) {
    const began = performance.now();
    const { output } = await this.layer.forward(hidden, { logits });
    const us = (performance.now() - began) * 1e3;
    output[Symbol.dispose]();
    this.#watchPlan();
    return us;
  }

  async runTrace(trace, energy) {
    const window = energy.begin();
    for (const batches of trace) {
      const samples = [];
      for (let i = 0; i < changeEvery; i++) samples.push(await this.step(batches[i % BATCHES]));
      this.phaseSamples.push(samples);
    }
    const reading = await window.end({ tokens: trace.length * changeEvery * tokens });
    if (!reading.available) return reading.reason;
    this.joules += reading.joules;
    this.energyTokens += reading.tokens;
    return undefined;
  }

  async report() {
    const all = this.phaseSamples.flat();
    const seconds = all.reduce((sum, us) => sum + us, 0) / 1e6;
    const lost = this.phaseSamples.map((samples) => {
      const usual = quantile(samples.slice(AFTERMATH), 0.5);
      return samples.slice(0, AFTERMATH).reduce((sum, us) => sum + us - usual, 0);
    });
    const { graphs } = await this.layer.statistics();
    return {
      name: this.name,
      stepUs: spread(all, { p10: 0.1, median: 0.5, p90: 0.9, p99: 0.99 }),
      stepsPerSecond: all.length / seconds,
      tokensPerSecond: (all.length * tokens) / seconds,
      afterChangeUs: spread(lost, { p10: 0.1, median: 0.5, p90: 0.9 }),
      phaseMedianUs: this.phaseSamples.map((samples) => rounded(quantile(samples, 0.5))),
      plans: this.plans,
      plansChanged: this.plansChanged,
      captures: graphs.captures,
      ...(this.energyTokens > 0 && {
        joulesPerStep: this.joules / (this.energyTokens / tokens),
        tokensPerJoule: this.energyTokens / this.joules,
      }),
    };
  }

  /** Counts plans, and those under which an expert moved or a slice was resized. */
  #watchPlan() {
    const { plan } = this.control;
    if (plan === this.#plan) return;
    this.plans++;
    const experts = ({ slices: { A, B, C } }) => [A, B, C].map((slice) => slice.experts.join());
    const same = (of) => of(plan).toString() === of(this.#plan).toString();
    if (!same(({ budgetKey }) => budgetKey) || !same(experts)) this.plansChanged++;
    this.#plan = plan;
  }
}

const rounded = (us) => Math.round(us * 10) / 10;

function spread(samples, quantiles) {
  const at = Object.entries(quantiles).map(([name, p]) => [name, rounded(quantile(samples, p))]);
  return Object.fromEntries(at);
}

/** Forms must differ in speed alone: outputs are the same to the bit, whatever the plan. */
async function compareOutputs(contenders, trace) {
  for (const [phase, [batch]] of trace.entries()) {
    let expected;
    for (const { name, layer } of contenders) {
      const { output } = await layer.forward(batch.hidden, { logits: batch.logits });
      const { data } = await output.toHost();
      output[Symbol.dispose]();
      expected ??= data;
      if (data.some((value, i) => value !== expected[i])) {
        throw new Error(`phase ${phase}: "${name}" and "${contenders[0].name}" differ`);
      }
    }
  }
}

function show(reports) {
  const head = ["form", "step us", "p99", "tokens/s", "lost a change, us", "plans (changed)"];
  const rows = reports.map(({ stepUs, afterChangeUs, ...it }) => [
    it.name,
    stepUs.median.toFixed(1),
    stepUs.p99.toFixed(1),
    it.tokensPerSecond.toFixed(0),
    afterChangeUs.median.toFixed(0),
    `${it.plans} (${it.plansChanged})`,
    String(it.captures),
    it.joulesPerStep?.toFixed(4) ?? "not measured",
  ]);
  printTable([...head, "captures", "J a step"], rows);
}

const device = await openDevice({ kind: options.device });
const preset = presetOf(options.preset ?? DEFAULT_PRESET[options.device]);
const dtype = options.device === "cuda" ? "bfloat16" : preset.dtype;
const rows = device.rowLayout(preset.hiddenSize, dtype).dtype;
const trace = makeTrace(device, preset, rows);
const contenders = [];
for (const form of FORMS) contenders.push(await Contender.open(form, device, preset, dtype));
// On the last phase, so that every phase of every round begins with a change.
for (const contender of contenders) {
  for (let i = 0; i < WARM_UP_STEPS; i++) await contender.step(trace.at(-1)[i % BATCHES]);
}
const energy = new EnergyMonitor(device.energy);
const noEnergy = new Set();
for (let turn = 0; turn < rounds; turn++) {
  // Each begins a round in its turn.
  const first = turn % contenders.length;
  for (const contender of [...contenders.slice(first), ...contenders.slice(0, first)]) {
    noEnergy.add(await contender.runTrace(trace, energy));
  }
}
noEnergy.delete(undefined);
const forms = [];
for (const contender of contenders) forms.push(await contender.report());
await compareOutputs(contenders, trace);

console.log(
  `${preset.name}, ${tokens} tokens a step, ${rounds} x ${phases} x ${changeEvery} steps`,
);
show(forms);
for (const reason of noEnergy) console.log(`energy: ${reason}`);
if (options.json !== undefined) {
  const report = {
    format: "nexus-drift/1",
    date: new Date().toISOString(),
    commit: process.env.NEXUS_COMMIT ?? "unknown",
    node: process.version,
    device: await summaryOf(device),
    preset: preset.name,
    tokens,
    steps: phases * changeEvery,
    changeEvery,
    rounds,
    aftermathSteps: AFTERMATH,
    forms,
    ...(noEnergy.size > 0 && { noEnergy: [...noEnergy] }),
  };
  writeFileSync(options.json, `${JSON.stringify(report, null, 1)}\n`);
}
for (const { layer } of contenders) await layer.close();
await device.close();
