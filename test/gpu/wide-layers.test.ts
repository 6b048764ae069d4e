/** The wide layers of the GPU tests, where there is no GPU: less wide ones, on a CPU and on an emulated GPU. */

import { describe, it } from "node:test";
import { withEmulated } from "../execution/cuda/emulator/harness.ts";
import { withCpu } from "../support/device.ts";
import { WEIGHT_DTYPES } from "../support/layers.ts";
import { randomFor } from "../support/seed.ts";
import { checkWide, LOADS } from "./wide-layers.ts";

const WIDEST = { tokens: 200, experts: 64, rows: 80 };

describe("layers of shapes drawn at random", () => {
  for (const dtype of WEIGHT_DTYPES) {
    for (const load of LOADS) {
      it(`${dtype}, ${load}`, async (t) => {
        const random = () => randomFor(`wide ${dtype} ${load}`);
        await withCpu(2, (device) => checkWide(device, random(), WIDEST, dtype, load));
        t.diagnostic(
          await withEmulated((device) => checkWide(device, random(), WIDEST, dtype, load)),
        );
      });
    }
  }
});
