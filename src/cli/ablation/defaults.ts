/** What is taken apart where nobody says what: a decode, a small batch and a prefill, of a size that the device is for. */

import type { DeviceKind } from "../../execution/device.ts";
import { parseSkew, type RoutingSkew } from "../../workload/popularity.ts";
import { type Preset, presetOf } from "../../workload/presets.ts";

export interface AblationDefaults {
  readonly presets: readonly Preset[];
  readonly tokens: readonly number[];
  readonly routing: readonly RoutingSkew[];
}

export const DEFAULTS: Readonly<Record<DeviceKind, AblationDefaults>> = {
  cpu: { presets: [presetOf("small")], tokens: [1, 16, 256], routing: [parseSkew("zipf:1.0")] },
  cuda: {
    presets: [presetOf("qwen3-30b-a3b")],
    tokens: [1, 64, 1024, 8192],
    routing: [parseSkew("zipf:1.0")],
  },
};
