/**
 * What a replayed step costs the host: writing the token count, checking budgets,
 * launching the graph, and reading the counts once it is done. Waiting is not in it:
 * the thread is free meanwhile. Beside it stand whole steps on the wall clock, and
 * calls of the layer, for a layer so small that the GPU has next to nothing to do.
 */

import {
  BareStep,
  DeviceTensor,
  figures,
  MoELayer,
  oneLane,
  quantile,
  Random,
  syntheticLayer,
} from "./support.mjs";

const SHAPE = { hiddenSize: 256, intermediateSize: 128, experts: 16, topK: 2, renormalize: true };
const TOKENS = 16;
const STEPS = 4000;
const WARM_UP = 1000;
/** Microseconds of a millisecond. */
const US = 1000;

export async function measureHost(device) {
  const synthetic = await syntheticLayer(device, SHAPE, 1);
  const { layer, modules, spec, weights } = synthetic;
  const data = new Random(1).fillNormal(new Float32Array(TOKENS * SHAPE.hiddenSize));
  const hidden = { dtype: "float32", shape: [TOKENS, SHAPE.hiddenSize], data };
  const step = new BareStep(layer, oneLane(layer), { tokens: TOKENS, outputType: "bfloat16" });
  try {
    await step.write(hidden);
    await step.run();
    const { graph, buffers } = step;
    const onDevice = await device.time(graph, 200);
    const samples = { host: [], submit: [], collect: [], wall: [] };
    const count = Int32Array.of(TOKENS);
    const counts = new Int32Array(SHAPE.experts);
    const cpu = { begin: undefined, begun: 0 };
    for (let i = 0; i < WARM_UP + STEPS; i++) {
      if (i === WARM_UP)
        Object.assign(cpu, { begin: process.cpuUsage(), begun: performance.now() });
      const begun = performance.now();
      device.write(buffers.tokens, count);
      step.applyBudgets();
      const done = graph.launch();
      const submitted = performance.now();
      await done;
      const noticed = performance.now();
      await device.read(buffers.counts, counts);
      const ended = performance.now();
      if (i < WARM_UP) continue;
      samples.submit.push((submitted - begun) * US);
      samples.collect.push((ended - noticed) * US);
      samples.host.push((submitted - begun + ended - noticed) * US);
      samples.wall.push((ended - begun) * US);
    }
    const { user, system } = process.cpuUsage(cpu.begin);
    const span = (performance.now() - cpu.begun) * US;
    return {
      ...figures(samples.host),
      submit: quantile(samples.submit, 0.5),
      collect: quantile(samples.collect, 0.5),
      wall: quantile(samples.wall, 0.5),
      onDevice: quantile(Array.from(onDevice), 0.5),
      // Polling keeps one thread busy: near 1 whatever a step costs.
      cpuShare: (user + system) / span,
      forward: await measureForward(device, spec, weights, hidden),
    };
  } finally {
    step[Symbol.dispose]();
    modules[Symbol.dispose]();
  }
}

/** Calls of MoELayer.forward with a device tensor of the GPU's own type, awaited one by one. */
async function measureForward(device, spec, weights, hidden) {
  const layer = await new MoELayer(spec, weights, { device }).ready();
  const layout = device.rowLayout(SHAPE.hiddenSize, "bfloat16");
  const buffer = device.allocate(TOKENS * layout.pitch * 2, "hidden states");
  device.writeRows(buffer, layout, hidden);
  const input = new DeviceTensor(device, buffer, hidden.shape, layout.dtype);
  const samples = [];
  try {
    for (let i = 0; i < WARM_UP + STEPS; i++) {
      const begun = performance.now();
      const { output } = await layer.forward(input);
      const ended = performance.now();
      output[Symbol.dispose]();
      if (i >= WARM_UP) samples.push((ended - begun) * US);
    }
  } finally {
    input[Symbol.dispose]();
    await layer.close();
  }
  const { us, p10, p90 } = figures(samples);
  return { us, p10, p90 };
}
