/**
 * What a replayed step costs the host: writing the token count, checking budgets,
 * launching the graph, and reading the counts once it is done. Waiting is not in it:
 * the thread is free meanwhile. Beside it stand whole steps on the wall clock, and
 * calls of the layer, for a layer so small that the GPU has next to nothing to do.
 */

import { measureForward, TINY as SHAPE } from "./forward.mjs";
import { BareStep, figures, oneLane, quantile, Random, syntheticLayer } from "./support.mjs";

const TOKENS = 16;
const STEPS = 4000;
const WARM_UP = 1000;
/** Microseconds of a millisecond. */
const US = 1000;

export async function measureHost(device) {
  const synthetic = await syntheticLayer(device, SHAPE, 1);
  const { layer, modules } = synthetic;
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
      forward: await measureForward(device, synthetic, SHAPE, TOKENS, "device"),
    };
  } finally {
    step[Symbol.dispose]();
    modules[Symbol.dispose]();
  }
}
