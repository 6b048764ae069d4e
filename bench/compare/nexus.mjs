/** Nexus as a contender: steps of a layer on inputs that the peers' process drew, checked there and timed here. */

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { BareStep, oneLane, StepStreams } from "../gpu/support.mjs";
import { paceOf } from "./pace.mjs";

/** Before every burst, as many as the peers have; waited for, so that the first replay of a burst begins on an idle stream. */
const WARM_UP_REPLAYS = 3;

export class NexusContender {
  #device;
  #streams;
  #steps = [];
  #graphs = [];
  /** Of a run without a pause: the graphs that take turns, the steps that each holds, and the launches handed over at once. */
  #pace;
  /** Many steps of all batches in turn. */
  #many;

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
    this.#pace ??= await this.#findPace();
    const { graphs, held, launches } = this.#pace;
    const began = performance.now();
    const elapsed = () => (performance.now() - began) / 1e3;
    let steps = 0;
    while (elapsed() < seconds) {
      await this.#device.timeBackToBack(graphs, launches);
      steps += held * launches;
    }
    return { steps, seconds: elapsed() };
  }

  async #findPace() {
    const batches = this.#graphs.length;
    const us = await this.#device.timeBackToBack(this.#graphs, 2 * batches);
    const { rounds, launches } = paceOf(us, batches);
    if (rounds === 0) return { graphs: this.#graphs, held: 1, launches };
    this.#many = this.#device.capture(this.#streams.main, () => {
      for (let round = 0; round < rounds; round++) for (const step of this.#steps) step.record();
    });
    return { graphs: [this.#many], held: rounds * batches, launches };
  }

  [Symbol.dispose]() {
    this.#many?.[Symbol.dispose]();
    for (const step of this.#steps) step[Symbol.dispose]();
    this.#streams[Symbol.dispose]();
  }
}

function bytesOf(file) {
  const { buffer, byteOffset, byteLength } = readFileSync(file);
  return buffer.slice(byteOffset, byteOffset + byteLength);
}
