/** Nexus as a contender: steps of a layer on inputs that the peers' process drew, checked there and timed here. */

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { BareStep, oneLane, StepStreams } from "../gpu/support.mjs";

/** As the peers have it: before every burst. */
const WARM_UP_REPLAYS = 3;
/** A run without a pause hands over about so much work before it waits, as the peers do. */
const BURST_SECONDS = 0.1;

export class NexusContender {
  mode = "graph";
  #device;
  #streams;
  #steps = [];
  #graphs = [];
  #all;

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
      made.#all = layer.device.capture(made.#streams.main, () => {
        for (const step of made.#steps) step.record();
      });
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
    const count = this.#steps.length;
    const each = (await this.#device.timeBackToBack(this.#all, 2)) / 1e6;
    const burst = Math.max(1, Math.round(BURST_SECONDS / each));
    const began = performance.now();
    const elapsed = () => (performance.now() - began) / 1e3;
    let steps = 0;
    while (elapsed() < seconds) {
      await this.#device.timeBackToBack(this.#all, burst);
      steps += burst * count;
    }
    return { steps, seconds: elapsed() };
  }

  [Symbol.dispose]() {
    this.#all?.[Symbol.dispose]();
    for (const step of this.#steps) step[Symbol.dispose]();
    this.#streams[Symbol.dispose]();
  }
}

function bytesOf(file) {
  const { buffer, byteOffset, byteLength } = readFileSync(file);
  return buffer.slice(byteOffset, byteOffset + byteLength);
}
