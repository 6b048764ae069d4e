/**
 * The bundle's manifest: what the kernels' build says of every kernel, and the
 * numbers that both sides must agree on. Nothing about a kernel's arguments, grid
 * or purpose is written down a second time in this device; it is read from here.
 *
 * Field names are the file's own. This file reads and checks; it loads nothing.
 */

import { z } from "zod";
import { DeviceUnavailableError } from "../../../errors.ts";

/** What the loader understands; a bundle with another number was built for another release. */
export const ABI_VERSION = 4;

/** Widths of weights and rows are multiples of this many elements, so that the kernels need no masks. */
export const PADDING = 64;

/** What to do about a bundle that is not what it should be. */
export const REINSTALL =
  "Install the package again; in a source tree, build the kernels again with `npm run kernels`.";

const PARAMETER_BYTES = { i32: 4, fp32: 4, i64: 8, fp64: 8, tensormap: 128 } as const;

/** Types of parameters that are no pointers. */
export type ScalarType = keyof typeof PARAMETER_BYTES;

const count = z.int().min(0);
const sha256 = z.string().regex(/^[0-9a-f]{64}$/, "must be 64 hexadecimal digits");
/** A size, by name, in steps of so many; and so many steps more. */
const extent = z.union([
  z.string().transform((of) => ({ of, by: 1, more: 0 })),
  z.object({ of: z.string(), by: z.int().min(1), more: count.default(0) }),
]);

const argument = z.object({
  name: z.string(),
  /** `*` and an element type for a pointer. */
  type: z.custom<ScalarType | `*${string}`>(
    (type) => typeof type === "string" && (type.startsWith("*") || type in PARAMETER_BYTES),
    `must be a pointer or one of ${Object.keys(PARAMETER_BYTES).join(", ")}`,
  ),
  /** The kernel was compiled for multiples of this (bytes for a pointer). */
  divisible_by: z.int().min(1).nullable(),
});

const grid = z.object({
  rule: z.string(),
  /** Blocks that fit on a multiprocessor at once. */
  blocks_per_multiprocessor: z.int().min(1),
  columns_per_block: z.int().min(1).optional(),
  /** Of a persistent kernel: a block for every piece where it has the whole device. */
  covers: z.boolean().optional(),
  shares_of_a_list: z.int().min(1).optional(),
  x: extent.optional(),
  y: extent.optional(),
});

const kernel = z.object({
  name: z.string(),
  /** Which archive it is in. */
  arch: z.string(),
  /** Symbol in the image. */
  entry: z.string(),
  image: z.object({ offset: count, bytes: z.int().min(1), sha256 }),
  num_warps: z.int().min(1),
  /** Bytes of dynamic shared memory. */
  shared: count,
  /** Which of `tables.args`. */
  args: count,
  tensordesc_meta: z.array(
    z.object({
      /** The parameter that it is for. */
      argument: z.string(),
      swizzle: count,
      l2_promotion: count,
      /** From the outermost dimension on: of rows, or of panels of every matrix. */
      block_size: z
        .array(z.int().min(1))
        .refine(({ length }) => length === 2 || length === 4, "must have 2 or 4 sizes"),
    }),
  ),
  /** Which of `tables.grid`. */
  grid: count,
  selects: z.record(
    z.string(),
    z.union([
      z.string(),
      z.number(),
      z.boolean(),
      z.object({ least: z.number().optional(), most: z.number().optional() }),
    ]),
  ),
  constants: z.record(z.string(), z.union([z.string(), z.number(), z.boolean()])),
  /** Whether it may start before the kernel in front of it is done. */
  launch_pdl: z.boolean(),
});

const manifest = z.object({
  abi_version: z.literal(ABI_VERSION),
  triton_version: z.string(),
  padding: z.literal(PADDING),
  /** Bits of `options`, by operator. */
  options: z.record(z.string(), z.record(z.string(), z.int())),
  scorings: z.record(z.string(), z.int()),
  /** Element types of logits that are given by address. */
  logits: z.record(z.string(), z.int()),
  /** Words of an entry in the bucket kernel's `lists`. */
  list_words: z.int().min(1),
  /** Words of what it says of a list in `tile_counts`. */
  count_words: z.int().min(1),
  /** Arguments of an activation: a number, null for infinity, or the name of the activation's own parameter. */
  activations: z.record(
    z.string(),
    z.record(z.string(), z.union([z.number(), z.string(), z.null()])),
  ),
  archives: z.record(z.string(), z.object({ file: z.string() })),
  /** What many kernels have in common, said once. */
  tables: z.object({ args: z.array(z.array(argument)), grid: z.array(grid) }),
  kernels: z.array(kernel),
});

export type KernelArgument = z.infer<typeof argument>;
export type GridRule = z.infer<typeof grid>;

/** A kernel, with what the file says in its tables put in. */
export type KernelEntry = Omit<z.infer<typeof kernel>, "args" | "grid"> & {
  /** Every parameter, in ABI order. */
  readonly args: readonly KernelArgument[];
  readonly grid: GridRule;
};

export type Manifest = Omit<z.infer<typeof manifest>, "tables" | "kernels"> & {
  readonly kernels: readonly KernelEntry[];
};

/** Bytes that a parameter takes. */
export function parameterBytes({ type }: KernelArgument): number {
  return isPointer(type) ? 8 : PARAMETER_BYTES[type];
}

export function isPointer(type: KernelArgument["type"]): type is `*${string}` {
  return type.startsWith("*");
}

/**
 * @param file how messages call it
 * @throws DeviceUnavailableError naming the field that is wrong
 */
export function parseManifest(text: string, file: string): Manifest {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw new DeviceUnavailableError(`${file} is not JSON. ${REINSTALL}`, { cause: error });
  }
  const version = (json as { abi_version?: unknown } | null)?.abi_version;
  if (version !== ABI_VERSION) {
    throw new DeviceUnavailableError(
      `${file} has abi_version ${String(version)} and this release reads ${ABI_VERSION}. ${REINSTALL}`,
    );
  }
  const parsed = manifest.safeParse(json);
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    throw damaged(file, `${whereIn(json, issue?.path ?? [])}: ${issue?.message}`);
  }
  const { tables, kernels, ...rest } = parsed.data;
  const complete = kernels.map((entry): KernelEntry => {
    const args = tables.args[entry.args];
    const grid = tables.grid[entry.grid];
    if (args !== undefined && grid !== undefined) return { ...entry, args, grid };
    const table = args === undefined ? "args" : "grid";
    throw damaged(file, `kernel ${entry.name}, ${table}: there is no number ${entry[table]}`);
  });
  return { ...rest, kernels: complete };
}

function damaged(file: string, what: string): DeviceUnavailableError {
  return new DeviceUnavailableError(`${file} is damaged: ${what}. ${REINSTALL}`);
}

/** A path into the manifest, with the kernel's name where it is about one. */
function whereIn(json: unknown, path: readonly PropertyKey[]): string {
  const [list, index, ...rest] = path;
  const found = (json as { kernels?: readonly { name?: unknown }[] }).kernels;
  if (list !== "kernels" || typeof index !== "number") return path.map(String).join(".");
  const name = found?.[index]?.name;
  return `kernel ${typeof name === "string" ? name : index}, ${rest.map(String).join(".")}`;
}
