/** `nexus demo` and `nexus bench` on a GPU: outputs held against float64, figures by the GPU's own clock and counter. */

import assert from "node:assert/strict";
import { gpuTest } from "../gpu/gpu.ts";
import { nexus } from "./nexus.ts";

async function jsonOf(args: readonly string[]) {
  const { code, stdout, stderr } = await nexus([...args, "--device", "cuda", "--json"]);
  assert.equal(stderr, "");
  assert.equal(code, 0);
  return JSON.parse(stdout);
}

gpuTest(
  "the demo on the GPU is correct, replays graphs and finds the experts that are hot",
  async (device, t) => {
    const report = await jsonOf(["demo", "--seed", "42"]);
    assert.equal(report.device.kind, "cuda");
    assert.equal(report.device.name, device.properties.name);
    assert.equal(report.correct, true);
    assert.ok(report.check.relativeError > 0 && report.check.relativeError < report.check.bound);
    assert.ok(report.graphs.replays > 0, JSON.stringify(report.graphs));
    const { tokensPerSecond } = report.throughput.adapted;
    assert.ok(tokensPerSecond > 0);
    const slices = ["A", "B", "C", "D", "E", "F"];
    for (const { plan, counts } of [report.before, report.after]) {
      assert.deepEqual(
        plan.slices.map(({ id }: { id: string }) => id),
        slices,
      );
      const hottest = counts.indexOf(Math.max(...counts));
      assert.equal(plan.experts[hottest].heat, "hot", JSON.stringify(plan.experts[hottest]));
    }
    t.diagnostic(`${Math.round(tokensPerSecond)} tokens a second`);
  },
);

gpuTest("the demo shows the GPU's work in 80 columns", async (device) => {
  const { code, stdout, stderr } = await nexus(["demo", "--device", "cuda"]);
  assert.equal(stderr, "");
  assert.equal(code, 0);
  for (const line of stdout.split("\n")) assert.ok([...line].length <= 80, line);
  assert.ok(stdout.includes(device.properties.name), stdout);
  assert.match(
    stdout,
    /^Output +correct: relative error \d\.\de-\d+ against the float64 reference/m,
  );
});

gpuTest("the benchmark times steps by the GPU's clock, and each is right", async (device, t) => {
  const cells = ["--preset", "small", "--tokens", "1,64", "--dtype", "bfloat16", "--repeat", "20"];
  const report = await jsonOf(["bench", ...cells]);
  assert.equal(report.device.name, device.properties.name);
  assert.ok(report.cells.length > 0);
  for (const { tokens, routing, relativeError, nexus: rate, sequential, graph } of report.cells) {
    assert.ok(relativeError < 6e-3, `${tokens} ${routing}: ${relativeError}`);
    assert.equal(rate.seconds.samples.length, 20);
    assert.ok(rate.seconds.median > 0 && sequential.seconds.median > 0);
    const step = graph.seconds.median;
    assert.ok(step > 0 && step < rate.seconds.median, "a step takes less than the call around it");
    t.diagnostic(`${tokens} ${routing}: ${(step * 1e6).toFixed(1)} us on the device`);
  }
});
