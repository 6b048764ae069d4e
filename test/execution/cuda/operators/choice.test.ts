/** Which of the kernels of `decode`'s second product a step takes: those that were measured to be fast. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { describe, it } from "node:test";
import type { Kernel } from "../../../../src/execution/cuda/bundle/kernel-set.ts";
import { type KernelEntry, parseManifest } from "../../../../src/execution/cuda/bundle/manifest.ts";
import { fillingKernel } from "../../../../src/execution/cuda/operators/choice.ts";
import { SHIPPED, TrustingModules } from "../bundle/fake-modules.ts";
import { FakeDevice } from "./harness.ts";
import { decodeOf } from "./operators.ts";

/**
 * Time of the second product by tile, over that of the best of 20 tiles, on an H100 with 132
 * multiprocessors and bfloat16: outputs, tokens, and what each tile takes.
 */
const TILES = ["4x1024", "4x512", "2x1024"] as const;
const MEASURED = [
  ["qwen3-30b-a3b", 2048, 4, [1.02, 1.24, 1.0]],
  ["qwen3-30b-a3b", 2048, 2, [1.18, 1.0, 1.18]],
  ["qwen3-30b-a3b", 2048, 1, [1.01, 1.07, 1.09]],
  ["deepseek-v3", 7168, 4, [1.01, 1.04, 1.01]],
  ["deepseek-v3", 7168, 1, [1.0, 1.01, 1.02]],
  ["mixtral-8x7b", 4096, 1, [1.26, 1.0, 1.05]],
  ["mixtral-8x7b", 4096, 2, [1.05, 1.24, 1.01]],
  ["mixtral-8x7b", 4096, 4, [1.01, 1.08, 1.04]],
  ["large", 2048, 2, [1.26, 1.0, 1.07]],
  ["large", 2048, 1, [1.0, 1.04, 1.03]],
  ["olmoe-1b-7b", 2048, 4, [1.03, 1.25, 1.0]],
  ["gpt-oss-20b", 2880, 4, [1.03, 1.06, 1.0]],
] as const;
/** Where the rule does worse: what fills the device evenly is not all that counts. */
const WORSE = [
  ["large", 2048, 4, [1.1, 1.35, 1.05]],
  ["qwen3-30b-a3b, Zipf 1.5", 2048, 4, [1.0, 1.04, 1.06]],
  ["olmoe-1b-7b, Zipf 1.5", 2048, 4, [1.0, 1.07, 1.04]],
  ["gpt-oss-20b, Zipf 1.5", 2880, 4, [1.0, 1.04, 1.02]],
  ["gpt-oss-20b", 2880, 1, [1.03, 1.01, 1.1]],
] as const;

/** The most that a choice may lose. */
const LOSS = 1.01;
const LOSS_WHERE_WORSE = 1.07;

for (const [which, shipped] of [
  ["as the tests make them up", undefined],
  ["of the package", SHIPPED],
] as const) {
  const skip = which === "of the package" && shipped === undefined && "kernels/bundle is not built";
  describe(`the kernels of decode's second product, ${which}`, { skip }, () => {
    const measured = [...MEASURED, ...WORSE];
    for (const [shape, outputs, mostTokens, costs] of measured) {
      it(`for ${outputs} outputs (${shape}) and ${mostTokens} tokens: one of the fastest`, async () => {
        const device = await (shipped === undefined ? FakeDevice.open() : onPackage(shipped));
        const second = device.projection({ count: 8, inputs: 72, outputs });
        const operator = decodeOf(device, { second, mostTokens, outputType: "bfloat16" });
        const name = device.kernels(device.encode(operator).work)[1]?.name;
        const tile = TILES.findIndex((each) => name === `decode_second_bf16_bf16_${each}`);
        const bound = WORSE.some((each) => each[3] === costs) ? LOSS_WHERE_WORSE : LOSS;
        assert.ok((costs[tile] ?? Number.POSITIVE_INFINITY) <= bound, `it takes ${name}`);
      });
    }
  });
}

function onPackage(directory: URL): Promise<FakeDevice> {
  const text = readFileSync(new URL("manifest.json", directory), "utf8");
  const modules = new TrustingModules(parseManifest(text, "manifest.json"));
  return FakeDevice.open({}, "ieee", modules, directory);
}

describe("of several kernels that cover their work", () => {
  const kernelOf = (name: string, by: number, blocks_per_multiprocessor: number) => {
    const grid = { rule: "cover", x: { of: "tokens", by: 1 }, y: { of: "n", by } };
    const entry = { name, grid: { ...grid, blocks_per_multiprocessor } } as unknown as KernelEntry;
    return { entry, fn: 0n } satisfies Kernel;
  };
  const taken = (n: number, tokens: number, ...kernels: Kernel[]) =>
    fillingKernel(kernels, { n, tokens }, 10)?.kernel.entry.name;

  it("the first is taken while its programs are all under way at once", () => {
    const [low, high] = [kernelOf("low", 1, 4), kernelOf("high", 4, 4)];
    assert.equal(taken(40, 1, low, high), "low");
    assert.equal(
      taken(40, 1, high, low),
      "high",
      "fewer programs than there is room for are no waste",
    );
    assert.equal(taken(41, 1, low, high), "high", "a last wave of one program is");
  });

  it("the first is taken if it is nearly as even as the best", () => {
    // Of 40 at a time, 110 programs fill 11/12 of three waves, and 105 a little less than 9/10.
    const [low, high] = [kernelOf("low", 1, 4), kernelOf("high", 200, 4)];
    assert.equal(taken(110, 1, low, high), "low");
    assert.equal(taken(105, 1, low, high), "high");
    assert.equal(taken(55, 2, low, high), "low", "programs of all tokens count");
  });

  it("there is none of none, and the grid goes with the kernel", () => {
    assert.equal(fillingKernel([], { n: 1, tokens: 1 }, 10), undefined);
    const found = fillingKernel([kernelOf("only", 4, 1)], { n: 41, tokens: 3 }, 10);
    assert.deepEqual([found?.grid.blocks(10), found?.grid.y], [3, 11]);
  });
});
