/**
 * Which kernel suits a product, and how tall the tiles of a launch are.
 *
 * A launch has tiles of one height, from the rows that an expert has on average:
 * few rows want small tiles, whose kernels stream weights at memory speed; many
 * want tall ones, which read weights fewer times. (Where experts are kept apart by
 * their rows there are several: tile-classes.ts.) Lists of tiles are made before
 * it is known which products will use them, so tiles are never taller than any
 * product's kernels can be. A kernel may be taller than the tiles of its list.
 *
 * Of kernels that cover their work, one whose programs fill the device evenly.
 */

import type { Activation } from "../../operators.ts";
import type { Kernel } from "../bundle/kernel-set.ts";
import type { Manifest } from "../bundle/manifest.ts";
import type { RowType } from "../rows.ts";
import type { OperatorContext } from "./context.ts";
import { coverGrid, type Grid, residentBlocks } from "./grids.ts";
import { expertInCache, inCache } from "./lasting.ts";

/** Most rows a matrix has on average for tiles of 16, 32 and 64 rows; beyond, the tallest. */
interface Shares {
  readonly rows16: number;
  readonly rows32: number;
  readonly rows64: number;
}
/**
 * Of experts, measured on an H100: at a share of 32 tiles of 64 rows take the least time, at 64 those of 128. Steps on tiles of 32
 * rows instead of 64 take 0.1 to 0.4 % less time at shares of 8 and 16 (medium 1.6 and, with Zipf 1.5, 6.5 % less) and 3 to 10 % less
 * energy; instead of 16 they take up to 0.6 % less time at 4, and as much energy. All this of gated experts with a logistic; where
 * others have no kernel of 32 rows, one of 64 goes through the same list, which has not been timed.
 */
const EXPERT_SHARES: Shares = { rows16: 2, rows32: 16, rows64: 48 };
/**
 * Of experts that are larger than the L2, of which a second tile reads weights from memory once more: mixtral-8x7b with a
 * share of 16 and Zipf 1.5 takes 3.4 % more time on tiles of 32 rows than of 64 (and 10 % less energy), DeepSeek-V3's shape with 8
 * between 0.3 % less and 0.4 % more (7 to 10 % less).
 */
const LARGE_EXPERT_SHARES: Shares = { rows16: 2, rows32: 8, rows64: 48 };
/** Of experts in float32, whose products have no tensor cores unless asked for: what a tile is taller than its rows costs more. */
const FLOAT32_SHARES: Shares = { rows16: 8, rows32: 8, rows64: 48 };
/**
 * Of experts whose weights are all found in the L2, where reading them fewer times gains nothing: there more
 * and lower tiles take less time, measured on an H100 up to a share of 1024 (8 experts of 3 MiB, half of its L2): at 256
 * 37.9 us a step instead of 42.7 on tiles of 128 rows, at 4 18.1 on those of 16 instead of 21.4 on 64.
 */
const CACHED_SHARES: Shares = { rows16: 8, rows32: 8, rows64: 1024 };
/** Of all rows with one matrix, which makes so few tiles that low ones keep more multiprocessors busy. */
export const DENSE_SHARES: Shares = { rows16: 8, rows32: 8, rows64: 128 };

/** What a kernel knows of activations: none, the formula of SwiGLU and its relatives, or any by a code. */
export type ActivationSet = "identity" | "logistic" | "coded";

/** The sets that have an activation, the fastest first. */
export function activationSets(
  { activations }: Manifest,
  { kind }: Pick<Activation, "kind">,
  gated: boolean,
): readonly ActivationSet[] {
  if (!gated) return kind === "none" ? ["identity", "coded"] : ["coded"];
  // The formula's code is that of its best-known case.
  const logistic = activations[kind]?.["code"] === activations["silu"]?.["code"];
  return logistic ? ["logistic", "coded"] : ["coded"];
}

export interface ProductNeeds {
  readonly element: RowType;
  readonly gated: boolean;
  readonly activation: Activation;
  readonly bias: boolean;
  readonly inputScale: boolean;
  /** Whether rows of the input are found through the order of a bucket. */
  readonly gather: boolean;
  /** Whether programs go in step (lane.ts). */
  readonly inStep: boolean;
  /** Elements of a row of the input. */
  readonly k: number;
  /** Rows of a tile at least. */
  readonly rows: number;
}

/** What `precision` selects for rows of this type. */
function precisionOf(element: RowType, { float32 }: Pick<OperatorContext, "float32">): string {
  return element === "float32" ? float32 : "ieee";
}

/** The rows that tiles should have for so many rows a matrix. */
function wantedRows(share: number, { rows16, rows32, rows64 }: Shares): number {
  if (share <= rows16) return 16;
  if (share <= rows32) return 32;
  return share <= rows64 ? 64 : 128;
}

/** Rows of a tile in lists for products of this element type. */
export function tileRows(
  context: Pick<OperatorContext, "kernels" | "float32">,
  element: RowType,
  share: number,
  shares: Shares,
): number {
  return tilesOfAtLeast(context, element, wantedRows(share, shares));
}

/** Rows of the lowest tiles that have so many, or of the tallest that products of this element type have kernels for. */
export function tilesOfAtLeast(
  context: Pick<OperatorContext, "kernels" | "float32">,
  element: RowType,
  wanted: number,
): number {
  const selects = {
    operator: "project",
    element,
    precision: precisionOf(element, context),
  };
  const kernels = context.kernels.all(selects);
  if (kernels.length === 0) context.kernels.missing(selects);
  // The kernels with extras can do what the ones without them can.
  const tallest = new Map<string, number>();
  for (const kernel of kernels.filter((each) => can("extras", each))) {
    const { gated, activations } = kernel.entry.selects;
    const product = `${gated} ${activations}`;
    tallest.set(product, Math.max(rowsOf(kernel), tallest.get(product) ?? 0));
  }
  const most = Math.min(...tallest.values());
  return Math.min(most, ...kernels.map(rowsOf).filter((rows) => rows >= wanted));
}

/** Choices that are to be spread over experts. */
export interface ExpertRows {
  readonly slots: number;
  readonly experts: number;
  /** Bytes of the weights of all experts; unknown ones are taken for many. */
  readonly weightBytes: number | undefined;
}

/** Rows of a tile in lists for experts. */
export function expertTileRows(
  context: Pick<OperatorContext, "kernels" | "float32" | "facts">,
  element: RowType,
  rows: ExpertRows,
): number {
  return tileRows(context, element, rows.slots / rows.experts, sharesOf(context, element, rows));
}

function sharesOf(
  context: Pick<OperatorContext, "facts">,
  element: RowType,
  { experts, weightBytes }: ExpertRows,
): Shares {
  if (inCache(context, weightBytes)) return CACHED_SHARES;
  if (element === "float32") return FLOAT32_SHARES;
  return expertInCache(context, weightBytes, experts) ? EXPERT_SHARES : LARGE_EXPERT_SHARES;
}

/**
 * The kernel for a product: of the fastest set of activations, the lowest that is tall enough. Of several
 * the one without extras (a bias and an input scale, should there be any), and then the first of the manifest: it is faster where
 * it serves.
 */
export function projectKernel(
  context: Pick<OperatorContext, "kernels" | "float32">,
  needs: ProductNeeds,
): Kernel {
  const { kernels } = context;
  const { element, gated, activation, bias, inputScale, gather, inStep, k, rows } = needs;
  const selects = {
    operator: "project",
    element,
    precision: precisionOf(element, context),
    gated,
    k,
  };
  const sets = activationSets(kernels.manifest, activation, gated);
  for (const activations of sets) {
    const found = kernels
      .all({ ...selects, activations })
      .filter((kernel) => rowsOf(kernel) >= rows)
      .filter((kernel) => can("extras", kernel) || (!inputScale && bias === can("bias", kernel)))
      .filter((kernel) => can("gather", kernel) || !gather)
      .filter((kernel) => inStep || !can("in_step", kernel))
      .sort((a, b) => rowsOf(a) - rowsOf(b) || Number(can("extras", a)) - Number(can("extras", b)));
    if (found[0] !== undefined) return found[0];
  }
  return kernels.missing({ ...selects, activations: sets.join(" or "), rows_per_tile: rows });
}

/** Whether sums of a product of plain weights begin with the bias; else it is added to them at the end. */
export function addsBiasFirst(
  context: Pick<OperatorContext, "kernels" | "float32">,
  needs: ProductNeeds,
): boolean {
  return can("bias", projectKernel(context, needs));
}

/**
 * The kernel for a product of packed weights, of which every one does exactly what it says: the lowest that is tall enough.
 * Undefined if there is none.
 */
export function packedKernel(
  { kernels }: Pick<OperatorContext, "kernels">,
  needs: Pick<ProductNeeds, "element" | "gated" | "activation" | "bias" | "gather" | "rows">,
): Kernel | undefined {
  const { element, gated, activation, bias, gather, rows } = needs;
  const [activations = ""] = activationSets(kernels.manifest, activation, gated);
  const [lowest] = kernels
    .all({ operator: "project_packed", element, gated, activations })
    .filter((kernel) => rowsOf(kernel) >= rows)
    .filter((kernel) => can("bias", kernel) === bias && can("gather", kernel) === gather)
    .sort((a, b) => rowsOf(a) - rowsOf(b));
  return lowest;
}

/** The kernel for the dense product of up to `mostTokens` rows, and the rows of its tiles. */
export function denseKernel(
  context: Pick<OperatorContext, "kernels" | "float32">,
  needs: Omit<ProductNeeds, "rows" | "gather" | "inStep">,
  mostTokens: number,
): { readonly kernel: Kernel; readonly rows: number } {
  const rows = tileRows(context, needs.element, mostTokens, DENSE_SHARES);
  const kernel = projectKernel(context, { ...needs, gather: false, inStep: false, rows });
  return { kernel, rows: rowsOf(kernel) };
}

/**
 * How much less of the device than the best a kernel may fill without giving way to it: kernels are in the
 * manifest in the order of their speed at equal fills. Measured for decode's second product on an H100: with 0.05
 * less than the best the first is still the fastest, with 0.2 less it loses 2 to 4 %, with 0.45 about 20 %; of whole
 * steps of 2 to 4 tokens up to 3 % with 0.2 less.
 */
const EVEN_ENOUGH = 0.1;

/**
 * Of kernels that do the same the first that fills the device evenly enough, and its grid over these sizes. One that is for
 * programs that are all under way at once (`one_wave`) is for no others.
 */
export function fillingKernel(
  kernels: readonly Kernel[],
  sizes: Readonly<Record<string, number>>,
  multiprocessors: number,
): { readonly kernel: Kernel; readonly grid: Grid } | undefined {
  const found = kernels.flatMap((kernel) => {
    const grid = coverGrid(kernel.entry, sizes);
    const programs = grid.blocks(multiprocessors) * grid.y;
    const resident = residentBlocks(kernel.entry, multiprocessors);
    if (can("one_wave", kernel) && programs > resident) return [];
    return [{ kernel, grid, fill: fillOf(programs, resident) }];
  });
  const best = Math.max(...found.map(({ fill }) => fill));
  return found.find(({ fill }) => fill >= best - EVEN_ENOUGH);
}

/**
 * The share of the device that programs fill on average, of which so many are `resident` at once: the last of
 * several waves may be a small one. Less than one wave counts as full: everything is under way at once.
 */
function fillOf(programs: number, resident: number): number {
  return programs <= resident ? 1 : programs / (Math.ceil(programs / resident) * resident);
}

function rowsOf({ entry }: Kernel): number {
  return Number(entry.selects["rows_per_tile"]);
}

/** For `in_step` and `one_wave`: whether it is for nothing else. */
function can(
  ability: "bias" | "extras" | "gather" | "in_step" | "one_wave",
  { entry }: Kernel,
): boolean {
  return entry.selects[ability] === true;
}
