/** Layers of shapes drawn at random, as wide as they come, on the GPU in poisoned memory against float64. */

import { WEIGHT_DTYPES } from "../support/layers.ts";
import { randomFor } from "../support/seed.ts";
import { gpuTest } from "./gpu.ts";
import { checkWide, LOADS } from "./wide-layers.ts";

const WIDEST = { tokens: 20_000, experts: 512, rows: 700 };

for (const dtype of WEIGHT_DTYPES) {
  for (const load of LOADS) {
    gpuTest(`a shape drawn at random, ${dtype}, ${load}`, async (device, t) => {
      t.diagnostic(
        await checkWide(device, randomFor(`gpu wide ${dtype} ${load}`), WIDEST, dtype, load),
      );
    });
  }
}
