/** MoELayer on an emulated GPU: every form of a layer, eager, captured and replayed, against the reference. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { ExpertsSpec, LayerSpec } from "../../../src/data/spec.ts";
import { MoELayer } from "../../../src/layer/moe-layer.ts";
import { referenceLayer, relativeError } from "../../../src/reference/index.ts";
import {
  batch,
  CLAMPED,
  gatedExperts,
  LAYOUTS,
  PLAIN_ACTIVATIONS,
  plainSpec,
  randomLayer,
  randomSpec,
  WEIGHT_DTYPES,
} from "../../support/layers.ts";
import { GROUPED_RULES, limited, RULES } from "../../support/rules.ts";
import { between, pick, randomFor } from "../../support/seed.ts";
import { withEmulated } from "./emulator/harness.ts";
import { checkLayer, hiddenFor } from "./emulator/layers.ts";

/** As if the experts were too large for the L2, where it is not reading them that counts. */
const NO_CACHE = { facts: { l2Bytes: 1 } };

describe("a layer on an emulated GPU", () => {
  for (const dtype of WEIGHT_DTYPES) {
    it(`batches of decode size and beyond, up and down, ${dtype}`, () =>
      withEmulated(async (device, driver) => {
        const random = randomFor(`emulated batches ${dtype}`);
        const spec: LayerSpec = {
          ...plainSpec(70, 1, 60, 3),
          experts: gatedExperts(70, 45, { dtype, bias: true }),
          shared: { experts: gatedExperts(70, 33, { dtype }), gate: true },
        };
        await checkLayer(device, random, randomLayer(random, spec), [5, 1, 2, 4, 17, 140, 3]);
        const names = [...driver.ran.keys()].join(" ");
        for (const kernel of ["decode_first", "decode_second", "project", "combine", "bucket"]) {
          assert.match(names, new RegExp(`\\b${kernel}_`));
        }
        assert.match(names, /gate_\w+_few.*gate_\w+_some|gate_\w+_some.*gate_\w+_few/);
      }));

    it(`every activation and form, with and without biases, ${dtype}`, () =>
      withEmulated(async (device) => {
        const random = randomFor(`emulated forms ${dtype}`);
        for (const activation of [...PLAIN_ACTIVATIONS, CLAMPED]) {
          const hiddenSize = pick(random, [20, 33, 64, 130]);
          const rest = { intermediateSize: between(random, 10, 100), activation, dtype };
          const gated: ExpertsSpec = { form: "gated", hiddenSize, bias: true, ...rest };
          const forms = [gated, { ...gated, bias: false }];
          if (activation !== CLAMPED) {
            forms.push({ ...gated, form: "mlp", depth: 2, bias: false });
            forms.push({ ...gated, form: "mlp", depth: 3 });
          }
          for (const experts of forms) {
            const spec = { ...plainSpec(hiddenSize, 1, 4, 2), experts };
            const sizes = [between(random, 1, 4), between(random, 5, 12)];
            await checkLayer(device, random, randomLayer(random, spec), sizes);
          }
        }
      }));
  }

  it("every rule, with selection bias and group limits", () =>
    withEmulated(async (device) => {
      const random = randomFor("emulated rules");
      const layer = (router: Partial<LayerSpec["router"]>) => {
        const base = plainSpec(20, 12, 12, 4);
        return randomLayer(random, { ...base, router: { ...base.router, ...router } });
      };
      for (const { rule } of RULES) await checkLayer(device, random, layer({ rule }), [3, 19]);
      for (const { rule } of GROUPED_RULES) {
        for (const selectionBias of [false, true]) {
          const router = { rule: limited(random, rule, 12, 4), selectionBias, bias: true };
          await checkLayer(device, random, layer(router), [3, 19]);
        }
      }
    }));

  it("weights on the input, concatenation, residual, capacity limits, shared experts", () =>
    withEmulated(async (device) => {
      const random = randomFor("emulated aggregation");
      const base = plainSpec(40, 30, 6, 2);
      const experts = gatedExperts(40, 30, { dtype: "bfloat16", bias: true });
      const shared = gatedExperts(40, 50, { dtype: "bfloat16", bias: true });
      for (const weightsApplyTo of ["input", "output"] as const) {
        for (const residual of [false, true]) {
          for (const gate of [false, true]) {
            const aggregation = { mode: "sum", weightsApplyTo, residual } as const;
            const spec = { ...base, experts, shared: { experts: shared, gate }, aggregation };
            await checkLayer(device, random, randomLayer(random, spec), [4, 9]);
          }
        }
        const aggregation = { mode: "concat", weightsApplyTo, residual: false } as const;
        for (const capacityFactor of [0.6, 1.5]) {
          const router = { ...base.router, capacityFactor };
          const spec = { ...base, experts, router, aggregation };
          await checkLayer(device, random, randomLayer(random, spec), [2, 40]);
        }
      }
    }));

  it("leaves no graph behind when it is closed", () =>
    withEmulated(async (device, driver) => {
      const random = randomFor("emulated closing");
      const parts = randomLayer(random, plainSpec(9, 6, 4, 2));
      await checkLayer(device, random, parts, [3, 9], { streams: 2 });
      await device.synchronize();
      const { graphs, execs } = driver.live;
      assert.deepEqual([graphs, execs], [undefined, undefined]);
    }));

  it("many choices and many experts", () =>
    withEmulated(async (device) => {
      const random = randomFor("emulated many");
      for (const [experts, topK] of [
        [33, 32],
        [32, 32],
        [70, 17],
        [300, 8],
        [1024, 32],
      ] as const) {
        const spec = plainSpec(9, 5, experts, topK);
        const sizes = experts > 256 ? [3, 5] : [3, 70];
        await checkLayer(device, random, randomLayer(random, spec), sizes);
      }
      await checkLayer(device, random, randomLayer(random, plainSpec(1, 1, 1, 1)), [1, 7]);
    }));

  it("tall tiles, for experts with many rows", () =>
    withEmulated(async (device, driver) => {
      const random = randomFor("emulated tall");
      for (const dtype of WEIGHT_DTYPES) {
        const experts = gatedExperts(16, 12, { dtype });
        const spec = { ...plainSpec(16, 1, 2, 2), experts };
        await checkLayer(device, random, randomLayer(random, spec), [70, 300]);
      }
      assert.ok(driver.ran.has("project_gated_logistic_bf16_rows128"));
    }, NO_CACHE));

  it("many rows that are long enough for the kernels made for them, shared experts included", () =>
    withEmulated(async (device, driver) => {
      const random = randomFor("emulated long rows");
      for (const [dtype, short] of [
        ["bfloat16", "bf16"],
        ["float16", "fp16"],
      ] as const) {
        const experts = gatedExperts(140, 170, { dtype });
        const shared = { experts: gatedExperts(140, 130, { dtype }), gate: true };
        const spec = { ...plainSpec(140, 1, 2, 2), experts, shared };
        await checkLayer(device, random, randomLayer(random, spec), [131, 20]);
        const parts = randomLayer(random, { ...plainSpec(140, 1, 3, 1), experts });
        await checkLayer(device, random, parts, [400], { streams: 2 });
        const [gated, plain] = [`gated_logistic_${short}`, `plain_identity_${short}`];
        for (const kernel of [`${gated}_many128`, `${plain}_many128`, `${plain}_many64`]) {
          assert.ok(driver.ran.has(`project_${kernel}`), kernel);
        }
      }
    }, NO_CACHE));

  it("steps of decode size whose rows are long, for either product", () =>
    withEmulated(async (device, driver) => {
      const random = randomFor("emulated long decode");
      for (const [hidden, inner, tiles] of [
        [1030, 20, ["16x256", "4x1024"]],
        [20, 1030, ["16x256", "4x1024"]],
      ] as const) {
        driver.ran.clear();
        const experts = gatedExperts(hidden, inner, { dtype: "bfloat16" });
        const spec = { ...plainSpec(hidden, 1, 2, 1), experts };
        await checkLayer(device, random, randomLayer(random, spec), [3]);
        const names = [...driver.ran.keys()].filter((name) => name.startsWith("decode"));
        assert.deepEqual(
          names.map((name) => name.split("_").at(-1)),
          tiles,
        );
      }
    }));

  it("few rows on average after many, and nearly all of them one expert's", () =>
    withEmulated(async (device) => {
      const random = randomFor("emulated skewed");
      const parts = randomLayer(random, plainSpec(9, 6, 33, 1));
      await using layer = new MoELayer(parts.spec, parts.tensors, { device });
      // The larger batch has tiles of 64 rows, the smaller ones of 16, in the same buffers.
      for (const tokens of [300, 100, 300, 100, 100, 300]) {
        const row = await hiddenFor(random, parts, 1);
        const hidden = Float32Array.from({ length: tokens * 9 }, (_, i) => row[i % 9] as number);
        hidden.set(await hiddenFor(random, parts, 3));
        const { output, stats } = await layer.forward(batch(hidden, 9));
        const expected = await referenceLayer(parts.spec, parts.source, hidden);
        assert.deepEqual(stats.counts, expected.counts);
        assert.ok(relativeError(output.data, expected.output) < 2e-5);
      }
    }));

  it("layers of random forms in random layouts, on several streams", () =>
    withEmulated(async (device) => {
      const random = randomFor("emulated random");
      for (let i = 0; i < 12; i++) {
        const spec = randomSpec(random, between(random, 16, 90));
        const parts = randomLayer(random, spec, pick(random, LAYOUTS));
        const sizes = [between(random, 5, 30), between(random, 1, 4)];
        await checkLayer(device, random, parts, sizes, { streams: between(random, 1, 8) });
      }
    }));
});

describe("the kernels of other architectures", () => {
  for (const [capability, sharedPerBlockOptin] of [
    [[8, 0], 166912],
    [[8, 9], 101376],
    [[10, 0], 232448],
    [[10, 3], 232448],
    [[12, 0], 101376],
  ] as const) {
    it(`${capability.join(".")}`, () =>
      withEmulated(
        async (device) => {
          const random = randomFor(`emulated ${capability}`);
          for (const dtype of WEIGHT_DTYPES) {
            const experts = gatedExperts(70, 45, { dtype, bias: true });
            const spec = { ...plainSpec(70, 1, 6, 2), experts };
            await checkLayer(device, random, randomLayer(random, spec), [3, 30]);
          }
        },
        { facts: { capability, sharedPerBlockOptin } },
      ));
  }

  it("float32 rows rounded to tf32", () =>
    withEmulated(
      async (device) => {
        const random = randomFor("emulated tf32");
        const parts = randomLayer(random, plainSpec(70, 45, 6, 2));
        await checkLayer(device, random, parts, [30], { bound: 1e-3 });
      },
      { float32: "tf32" },
    ));
});
