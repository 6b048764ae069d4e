import assert from "node:assert/strict";
import { test } from "node:test";
import { CostSamples } from "../../../src/control/slices/trial.ts";
import { between, randomFor } from "../../support/seed.ts";
import { normalNumber } from "../loads.ts";

test("there is no gain while no batch size has enough of both", () => {
  const [a, b] = [new CostSamples(), new CostSamples()];
  for (let i = 0; i < 10; i++) a.add(1, 8);
  for (let i = 0; i < 10; i++) b.add(1, 4096);
  b.add(1, 8);
  assert.equal(a.gainOver(b), undefined);
  b.add(1, 8);
  assert.deepEqual(a.gainOver(b), { gain: 0, variance: 0 });
});

test("a gain is seen through batch sizes of very different cost, with the error it has", () => {
  const random = randomFor("trial gain");
  const errors: number[] = [];
  let claimed = 0;
  const repeats = 200;
  for (let r = 0; r < repeats; r++) {
    const [slow, fast] = [new CostSamples(), new CostSamples()];
    const noisy = (cost: number) => cost * Math.exp(0.05 * normalNumber(random));
    for (let i = 0; i < 60; i++) {
      for (const [samples, factor] of [
        [slow, 1],
        [fast, 0.9],
      ] as const) {
        // Small batches cost a thousand times more per token than large ones.
        const tokens = 4 ** between(random, 0, 3);
        samples.add(noisy(factor * (1 + tokens / 1000)), tokens);
      }
    }
    const result = fast.gainOver(slow);
    assert.ok(result !== undefined);
    errors.push(result.gain - Math.log(1 / 0.9));
    claimed += result.variance / repeats;
  }
  const mean = errors.reduce((a, b) => a + b, 0) / repeats;
  const variance = errors.reduce((a, b) => a + b * b, 0) / repeats;
  assert.ok(Math.abs(mean) < 0.004, `bias ${mean}`);
  assert.ok(variance < 1.6 * claimed && variance > claimed / 1.6, `${variance} against ${claimed}`);
});
