/** The operators of the CPU device, by the number that a program calls them. */

import type { TileOperator } from "../context.ts";
import { OPERATOR_KIND } from "../program.ts";
import { bucket } from "./bucket.ts";
import { combine } from "./combine.ts";
import { fill, pack } from "./pack.ts";
import { project } from "./project.ts";
import { route } from "./route.ts";

/** A program's first operator: one tile with nothing in it. */
const start: TileOperator = {
  open: () => 1,
  run: () => {},
};

const BY_NAME: Readonly<Record<keyof typeof OPERATOR_KIND, TileOperator>> = {
  start,
  route,
  bucket,
  project,
  combine,
  pack,
  fill,
};

export const TILE_OPERATORS: readonly TileOperator[] = Object.entries(OPERATOR_KIND)
  .sort(([, a], [, b]) => a - b)
  .map(([name]) => BY_NAME[name as keyof typeof OPERATOR_KIND]);
