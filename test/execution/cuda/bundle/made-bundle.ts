/**
 * A kernel bundle in a temporary folder: the kernels of made-variants.ts, with images
 * that are no code. An image is JSON with the sizes of its parameters, so that a driver
 * that only takes notes can answer for it.
 */

import { createHash } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { brotliCompressSync } from "node:zlib";
import { variantsOf } from "./made-variants.ts";

type Json = Record<string, unknown>;

const SIZES: Readonly<Record<string, number>> = {
  i32: 4,
  fp32: 4,
  i64: 8,
  fp64: 8,
  tensormap: 128,
};

export const ARCHIVES = ["sm_80", "sm_90a", "sm_100a", "sm_120a", "ptx"];

/** What is written into an image. */
export interface ImageNote {
  readonly name: string;
  readonly sizes: readonly number[];
}

/** The manifest and the archives, before they are compressed. */
export function madeBundle(): {
  manifest: Json & { kernels: Json[]; tables: { args: Json[][]; grid: Json[] } };
  archives: Map<string, Buffer>;
} {
  const kernels: Json[] = [];
  const tables = { args: [] as Json[][], grid: [] as Json[] };
  const archives = new Map<string, Buffer>();
  for (const arch of ARCHIVES) {
    const images: Buffer[] = [];
    let offset = 0;
    for (const variant of variantsOf(arch)) {
      const { name, args, grid, selects, maps = {}, shared = 0, warps = 4 } = variant;
      const all = [...args, ["global_scratch", "*i8"], ["profile_scratch", "*i8"]] as const;
      const sizes = all.map(([, type = ""]) => SIZES[type] ?? 8);
      const image = Buffer.from(JSON.stringify({ name, sizes } satisfies ImageNote));
      images.push(image);
      kernels.push({
        name,
        arch,
        entry: name.split("_")[0],
        image: {
          offset,
          bytes: image.length,
          sha256: createHash("sha256").update(image).digest("hex"),
        },
        num_warps: warps,
        shared,
        args: tables.args.length,
        tensordesc_meta: Object.entries(maps).map(([argument, block_size]) => ({
          argument,
          block_size,
          swizzle: 3,
          l2_promotion: 2,
        })),
        grid: tables.grid.length,
        selects,
        constants: {},
        launch_pdl: false,
      });
      tables.grid.push(grid);
      tables.args.push(
        all.map(([argument, type, divisible = null]) => ({
          name: argument,
          type,
          divisible_by: divisible,
        })),
      );
      offset += image.length;
    }
    archives.set(arch, Buffer.concat(images));
  }
  const logistic = { code: 4, cubic: 0, limit: null, shift: 0 };
  const coded = (code: number) => ({ code, linear: 0, cubic: 0, limit: null, shift: 0 });
  const manifest = {
    abi_version: 4,
    triton_version: "3.6.0",
    padding: 64,
    options: {
      project: {
        gather: 1,
        bias: 2,
        input_scale: 4,
        dense: 8,
        half_time: 16,
        in_step: 32,
        claim: 64,
        read_once: 128,
        keep: 256,
        bias_last: 512,
      },
      decode_first: { bias: 2, input_scale: 4, read_once: 128 },
      decode_second: {
        weights: 1,
        shared: 2,
        shared_scale: 4,
        residual: 8,
        bias: 16,
        read_once: 32,
      },
      combine: {
        weights: 1,
        shared: 2,
        shared_scale: 4,
        residual: 8,
        rows_spent: 16,
        inner_spent: 32,
      },
      route: { bias: 1, renormalize: 2, top2_sum: 4, sets: 8, counts: 16 },
      gate: { bias: 1, sigmoid: 2 },
      tidy: { out: 1, counts_host: 2, fault_host: 4, clear: 8 },
    },
    logits: { float32: 0, bfloat16: 1, float16: 2 },
    scorings: { softmax: 0, sigmoid: 1, "topk-softmax": 2, "topk-sigmoid": 3, sparsemixer: 4 },
    list_words: 4,
    count_words: 4,
    activations: {
      silu: { ...logistic, linear: 1 },
      "gelu-tanh": { ...logistic, linear: 1.5957691216057308, cubic: 0.07135481627260025 },
      "swiglu-clamped": { ...logistic, linear: "alpha", limit: "limit", shift: 1 },
      none: coded(0),
      relu: coded(1),
      gelu: coded(2),
      sigmoid: coded(3),
    },
    sources_sha256: {},
    archives: {} as Json,
    tables,
    kernels,
  };
  return { manifest, archives };
}

/** Writes a bundle down; returns where, and how to get rid of it. */
export function writeBundle({ manifest, archives }: ReturnType<typeof madeBundle> = madeBundle()): {
  directory: URL;
  folder: string;
  remove: () => void;
} {
  const folder = mkdtempSync(path.join(tmpdir(), "nexus-bundle-"));
  for (const [arch, images] of archives) {
    const packed = brotliCompressSync(images);
    const file = `${arch}.br`;
    writeFileSync(path.join(folder, file), packed);
    const sha256 = createHash("sha256").update(packed).digest("hex");
    (manifest["archives"] as Json)[arch] = { file, bytes: packed.length, sha256 };
  }
  writeFileSync(path.join(folder, "manifest.json"), JSON.stringify(manifest));
  return {
    directory: pathToFileURL(`${folder}/`),
    folder,
    remove: () => rmSync(folder, { recursive: true, force: true }),
  };
}
