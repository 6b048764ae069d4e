/** Nexus as a contender: steps of a layer on inputs that the peers' process drew, checked there and timed here. */

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { BareStep, oneLane, StepStreams } from "../gpu/support.mjs";

/** Before every burst, as many as the peers have; waited for, so that the first replay of a burst begins on an idle stream. */
const WARM_UP_REPLAYS = 3;
/** A run without a pause hands over about so much work before it waits, as the peers do. */
const BURST_SECONDS = 0.1;

export class NexusContender {
  #device;
  #streams;
  #steps = [];
  #graphs = [];
  /** Steps of a run without a pause that are handed over at once, all batches equally often. */
  #burst = 0;

  /** One step and graph for each batch in the folder. */
  static async make(synthetic, { tokens, batches, folder }) {
    const made = new NexusContender();
    const { layer, spec } = synthetic;
    made.#device = layer.device;
    made.#streams = new StepStreams(layer.device, oneLane(layer));
    try {
      for (let i = 0; i < batches; i++) {
        const options = {
          tokens,
          fromLogits: true,
          outputType: "bfloat16",
          streams: made.#streams,
        };
        const step = new BareStep(layer, oneLane(layer), options);
        made.#steps.push(step);
        await step.write({
          dtype: "bfloat16",
          shape: [tokens, spec.hiddenSize],
          data: new Uint16Array(bytesOf(join(folder, `${i}.hidden.bf16`))),
        });
        step.writeLogits({
          dtype: "float32",
          shape: [tokens, spec.router.experts],
          data: new Float32Array(bytesOf(join(folder, `${i}.logits.f32`))),
        });
        await step.run();
        made.#graphs.push(step.graph);
      }
      return made;
    } catch (error) {
      made[Symbol.dispose]();
      throw error;
    }
  }

  /** Replays every graph over poisoned outputs and writes what it puts out into files. */
  async outputs(folder) {
    const files = [];
    for (const [i, step] of this.#steps.entries()) {
      const { data } = await step.output();
      this.#device.write(step.buffers.output, new Uint16Array(data.length).fill(0x7fc0));
      await step.replay();
      const file = join(folder, `${i}.output.bf16`);
      writeFileSync(file, (await step.output()).data);
      files.push(file);
    }
    return files;
  }

  async time(replays) {
    await this.#device.time(this.#graphs, WARM_UP_REPLAYS);
    return Array.from(
      await this.#device.time(this.#graphs, replays),
      (us) => Math.round(us * 1e3) / 1e3,
    );
  }

  /** Steps without a pause. */
  async run(seconds) {
    if (this.#burst === 0) {
      const us = await this.#device.timeBackToBack(this.#graphs, 2 * this.#graphs.length);
      const wanted = Math.ceil((BURST_SECONDS * 1e6) / us / this.#graphs.length);
      this.#burst = wanted * this.#graphs.length;
    }
    const began = performance.now();
    const elapsed = () => (performance.now() - began) / 1e3;
    let steps = 0;
    while (elapsed() < seconds) {
      await this.#device.timeBackToBack(this.#graphs, this.#burst);
      steps += this.#burst;
    }
    return { steps, seconds: elapsed() };
  }

  [Symbol.dispose]() {
    for (const step of this.#steps) step[Symbol.dispose]();
    this.#streams[Symbol.dispose]();
  }
}

function bytesOf(file) {
  const { buffer, byteOffset, byteLength } = readFileSync(file);
  return buffer.slice(byteOffset, byteOffset + byteLength);
}
