/** What each kernel of the bundle does, by its function's name. */

import type { KernelCall } from "../call.ts";
import { combine, concat } from "./aggregation.ts";
import { bucket, mark } from "./buckets.ts";
import {
  decodeFirst,
  decodePackedFirst,
  decodePackedRouting,
  decodePackedSecond,
  decodePackedSecondJoint,
  decodeRouting,
  decodeSecond,
} from "./decode.ts";
import { gate, gateFew } from "./gate.ts";
import { fillUniform, packRows } from "./layout.ts";
import { packWeights } from "./pack-weights.ts";
import { projectPacked } from "./packed.ts";
import { project } from "./project.ts";
import { route } from "./route.ts";
import { tidy } from "./tidy.ts";

export const KERNELS: Readonly<Record<string, (call: KernelCall) => void>> = {
  route,
  mark,
  bucket,
  tidy,
  gate,
  gate_few: gateFew,
  project,
  project_many: project,
  project_packed: projectPacked,
  decode_first: decodeFirst,
  decode_routing: decodeRouting,
  decode_second: decodeSecond,
  decode_packed_first: decodePackedFirst,
  decode_packed_routing: decodePackedRouting,
  decode_packed_second: decodePackedSecond,
  decode_packed_second_joint: decodePackedSecondJoint,
  combine,
  concat,
  pack_rows: packRows,
  fill_uniform: fillUniform,
  pack_weights: packWeights,
};
