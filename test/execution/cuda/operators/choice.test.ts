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
 * Time of the second product by tile, over that of the best of 14 tiles, on an H100 with 132
 * multiprocessors and bfloat16: inputs, outputs, tokens, and what each tile takes, also where the
 * bundle has it not for these inputs.
 */
const TILES = ["4x1024", "2x1024", "4x256"] as const;
const MEASURED = [
  ["small", 1024, 512, 1, [1.0, 1.01, 1.21]],
  ["small", 1024, 512, 2, [1.03, 1.11, 1.11]],
  ["medium", 2048, 1024, 1, [1.0, 1.0, 1.2]],
  ["medium", 2048, 1024, 2, [1.03, 1.05, 1.08]],
  ["qwen3-30b-a3b", 768, 2048, 1, [1.02, 1.02, 1.04]],
  ["qwen3-30b-a3b", 768, 2048, 4, [1.03, 1.03, 1.0]],
  ["qwen3-30b-a3b, Zipf 1.5", 768, 2048, 4, [1.09, 1.15, 1.0]],
  ["olmoe-1b-7b", 1024, 2048, 1, [1.01, 1.02, 1.06]],
  ["olmoe-1b-7b", 1024, 2048, 2, [1.03, 1.08, 1.01]],
  ["olmoe-1b-7b", 1024, 2048, 4, [1.02, 1.02, 1.01]],
  ["olmoe-1b-7b, Zipf 1.5", 1024, 2048, 4, [1.0, 1.03, 1.0]],
  ["large", 4096, 2048, 1, [1.01, 1.02, 1.06]],
  ["large", 4096, 2048, 2, [1.03, 1.07, 1.01]],
  ["large", 4096, 2048, 4, [1.03, 1.0, 1.05]],
  ["large, Zipf 1.5", 4096, 2048, 4, [1.02, 1.0, 1.06]],
  ["gpt-oss-20b", 2880, 2880, 2, [1.12, 1.03, 1.0]],
  ["gpt-oss-20b", 2880, 2880, 4, [1.0, 1.0, 1.07]],
  ["gpt-oss-20b, Zipf 1.5", 2880, 2880, 4, [1.01, 1.0, 1.13]],
  ["mixtral-8x7b", 14336, 4096, 1, [1.05, 1.07, 1.0]],
  ["mixtral-8x7b", 14336, 4096, 2, [1.04, 1.03, 1.02]],
  ["deepseek-v3", 2048, 7168, 1, [1.01, 1.01, 1.01]],
  ["deepseek-v3", 2048, 7168, 2, [1.0, 1.01, 1.02]],
  ["deepseek-v3", 2048, 7168, 4, [1.01, 1.01, 1.07]],
  ["deepseek-v3, Zipf 1.5", 2048, 7168, 4, [1.02, 1.0, 1.27]],
] as const;
/** Where the rule does worse: what fills the device evenly is not all that counts. */
const WORSE = [
  ["small", 1024, 512, 4, [1.17, 1.16, 1.1]],
  ["small, Zipf 1.5", 1024, 512, 4, [1.13, 1.18, 1.08]],
  ["medium", 2048, 1024, 4, [1.08, 1.34, 1.0]],
  ["medium, Zipf 1.5", 2048, 1024, 4, [1.07, 1.36, 1.0]],
  ["qwen3-30b-a3b", 768, 2048, 2, [1.05, 1.14, 1.0]],
  ["gpt-oss-20b", 2880, 2880, 1, [1.06, 1.08, 1.05]],
] as const;

/** The same of packed weights, of four tiles; where few rows of a matrix keep tokens apart. */
const PACKED_TILES = ["16x2", "8x2", "8x1", "16x1"] as const;
const PACKED_MEASURED = [
  ["qwen3-30b-a3b", 768, 2048, 1, [1.0, 1.12, 1.31, 1.07]],
  ["qwen3-30b-a3b", 768, 2048, 2, [1.15, 1.0, 1.05, 1.0]],
  ["mixtral-8x7b", 14336, 4096, 1, [1.03, 1.0, 1.09, 1.01]],
  ["gpt-oss-20b", 2880, 2880, 1, [1.2, 1.03, 1.18, 1.0]],
  ["gpt-oss-20b", 2880, 2880, 2, [1.14, 1.0, 1.01, 1.16]],
  ["olmoe-1b-7b", 1024, 2048, 1, [1.0, 1.15, 1.35, 1.06]],
  ["olmoe-1b-7b", 1024, 2048, 2, [1.15, 1.0, 1.07, 1.01]],
  ["large", 4096, 2048, 1, [1.0, 1.15, 1.45, 1.07]],
  ["large", 4096, 2048, 2, [1.07, 1.0, 1.1, 1.01]],
  ["medium", 2048, 1024, 1, [1.0, 1.11, 1.36, 1.1]],
  ["medium", 2048, 1024, 2, [1.0, 1.09, 1.3, 1.05]],
  ["medium", 2048, 1024, 4, [1.34, 1.0, 1.13, 1.02]],
  ["deepseek-v3", 2048, 7168, 1, [1.16, 1.28, 1.0, 1.05]],
] as const;

/** The same of those that take several tokens together, of three tiles, on an H200, which has as many multiprocessors. */
const JOINT_TILES = ["16x2", "16x1", "8x1"] as const;
const JOINT_MEASURED = [
  ["mixtral-8x7b", 14336, 4096, 2, [1.09, 1.0, 1.21]],
  ["mixtral-8x7b", 14336, 4096, 4, [1.08, 1.0, 1.22]],
  ["mixtral-8x7b, Zipf 1.5", 14336, 4096, 4, [1.09, 1.0, 1.21]],
  ["gpt-oss-20b", 2880, 2880, 4, [1.21, 1.0, 1.3]],
  ["gpt-oss-20b, Zipf 1.5", 2880, 2880, 4, [1.22, 1.0, 1.26]],
  ["olmoe-1b-7b", 1024, 2048, 4, [1.0, 1.08, 1.63]],
  ["large", 4096, 2048, 4, [1.0, 1.16, 1.79]],
  ["large, Zipf 1.5", 4096, 2048, 4, [1.0, 1.12, 1.7]],
  ["deepseek-v3", 2048, 7168, 2, [1.2, 1.06, 1.0]],
  ["deepseek-v3", 2048, 7168, 4, [1.14, 1.02, 1.0]],
  ["deepseek-v3, Zipf 1.5", 2048, 7168, 4, [1.17, 1.03, 1.0]],
] as const;

/** So many that hardly two tokens share one. */
const UNSHARED_EXPERTS = 64;

/** The most that a choice may lose to the best of the three. */
const LOSS = 1.03;
const LOSS_WHERE_WORSE = 1.08;

/** @param costs of each tile; the kernel's name is `prefix` and its tile */
function checkLoss(
  name: string | undefined,
  prefix: string,
  tiles: readonly string[],
  costs: readonly number[],
  bound: number,
): void {
  const tile = tiles.findIndex((each) => name === `${prefix}${each}`);
  const loss = (costs[tile] ?? Number.POSITIVE_INFINITY) / Math.min(...costs);
  assert.ok(loss <= bound, `it takes ${name}`);
}

for (const [which, shipped] of [
  ["as the tests make them up", undefined],
  ["of the package", SHIPPED],
] as const) {
  const skip = which === "of the package" && shipped === undefined && "kernels/bundle is not built";
  describe(`the kernels of decode's second product, ${which}`, { skip }, () => {
    /** The kernel of the second product. */
    const taken = async (
      kept: "projection" | "packed",
      inputs: number,
      outputs: number,
      mostTokens: number,
      count = 8,
    ) => {
      const device = await (shipped === undefined ? FakeDevice.open() : onPackage(shipped));
      const first = device[kept]({ count, inputs: 100, outputs: inputs, gated: true });
      const second = device[kept]({ count, inputs, outputs });
      const operator = decodeOf(device, { first, second, mostTokens, outputType: "bfloat16" });
      return device.kernels(device.encode(operator).work)[1]?.name;
    };
    const measured = [...MEASURED, ...WORSE];
    for (const [shape, inputs, outputs, mostTokens, costs] of measured) {
      it(`for ${inputs} inputs, ${outputs} outputs (${shape}) and ${mostTokens} tokens: one of the fastest`, async () => {
        const name = await taken("projection", inputs, outputs, mostTokens);
        const bound = WORSE.some((each) => each[4] === costs) ? LOSS_WHERE_WORSE : LOSS;
        checkLoss(name, "decode_second_bf16_bf16_", TILES, costs, bound);
      });
    }
    for (const [shape, inputs, outputs, mostTokens, costs] of PACKED_MEASURED) {
      it(`packed, for ${inputs} inputs, ${outputs} outputs (${shape}) and ${mostTokens} tokens: one of the fastest`, async () => {
        const name = await taken("packed", inputs, outputs, mostTokens, UNSHARED_EXPERTS);
        checkLoss(name, "decode_packed_second_bf16_bf16_", PACKED_TILES, costs, LOSS);
      });
    }
    for (const [shape, inputs, outputs, mostTokens, costs] of JOINT_MEASURED) {
      it(`packed and jointly, for ${inputs} inputs, ${outputs} outputs (${shape}) and ${mostTokens} tokens: one of the fastest`, async () => {
        const name = await taken("packed", inputs, outputs, mostTokens);
        checkLoss(name, "decode_packed_second_joint_bf16_bf16_", JOINT_TILES, costs, LOSS);
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
  const kernelOf = (
    name: string,
    by: number,
    blocks_per_multiprocessor: number,
    one_wave = false,
  ) => {
    const grid = {
      rule: "cover",
      x: { of: "tokens", by: 1, more: 0 },
      y: { of: "n", by, more: 0 },
    };
    const selects = { one_wave };
    const own = { name, grid: { ...grid, blocks_per_multiprocessor }, selects };
    const entry = own as unknown as KernelEntry;
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

  it("one that is for programs that are all under way at once is for no more", () => {
    const [low, high] = [kernelOf("low", 1, 4, true), kernelOf("high", 4, 4)];
    assert.equal(taken(40, 1, low, high), "low");
    // However evenly they would fill two waves.
    assert.equal(taken(80, 1, low, high), "high");
  });

  it("there is none of none, and the grid goes with the kernel", () => {
    assert.equal(fillingKernel([], { n: 1, tokens: 1 }, 10), undefined);
    const found = fillingKernel([kernelOf("only", 4, 1)], { n: 41, tokens: 3 }, 10);
    assert.deepEqual([found?.grid.blocks(10), found?.grid.y], [3, 11]);
  });
});
