/**
 * The typed face of the WebAssembly kernels in kernels/cpu: which of the two
 * builds this runtime can take, and what every export does.
 *
 * The module is compiled once and posted to the worker threads; each thread
 * instantiates it on the same shared memory. Kernels check nothing: whoever calls
 * them answers for addresses, sizes and alignment.
 */

import { readFile } from "node:fs/promises";
import { DeviceUnavailableError } from "../../errors.ts";
import type { DType } from "../../tensor.ts";
import type { Activation } from "../operators.ts";

/** Which build of the kernels is in use: with fused multiply-add, or without. */
export type KernelVariant = "relaxed-simd" | "simd";

export interface CompiledKernels {
  readonly module: WebAssembly.Module;
  readonly variant: KernelVariant;
}

/** Element types that weights can be kept in. */
export type WeightDType = Exclude<DType, "int32">;

/** How the kernels call the element types. */
export const DTYPE_CODE: Readonly<Record<WeightDType, number>> = {
  float32: 0,
  bfloat16: 1,
  float16: 2,
};

/** How the kernels call the activations. */
export const ACTIVATION_CODE: Readonly<Record<Activation["kind"], number>> = {
  none: 0,
  relu: 1,
  silu: 2,
  gelu: 3,
  "gelu-tanh": 4,
  sigmoid: 5,
  "swiglu-clamped": 6,
};

/** How `pack` calls the halves of a gated projection. */
export const PART_CODE = { value: 0, gate: 1 } as const;

/** How the kernels take a yes or no. */
export type Flag = 0 | 1;

/** 4 GiB, the most a memory of the kernels can have, in pages of 64 KiB. */
export const MAXIMUM_PAGES = 65536;

/**
 * The exports. An address is a byte offset into the memory, 0 to 2^32 - 1;
 * rows need 4-byte alignment, packed weights and scratch 16-byte alignment.
 * 0 stands for an absent array.
 */
export interface Kernels {
  /** Bytes of one packed [outputs, inputs] matrix (both halves, if gated). */
  packedBytes(dtype: number, outputs: number, inputs: number, gated: Flag): number;

  /** Outputs of one panel, the unit in which `pack` and `project` split a matrix: 8, or 4 if gated. */
  panelOutputs(gated: Flag): number;

  /**
   * Copies rows firstOutput to firstOutput + outputCount - 1 of an [outputs, inputs]
   * matrix into the packed matrix at `dst`. Workers may pack disjoint ranges at once.
   *
   * @param dst 16-byte aligned; what `packedBytes` says, all zeros before it is first packed
   * @param part PART_CODE: value, or (gated only) gate
   * @param firstOutput a multiple of panelOutputs; the range ends at such a multiple or at `outputs`
   * @param src element (firstOutput, 0) of the source, which has the same element type
   * @param rowStride elements from one output to the next
   * @param columnStride elements from one input to the next
   */
  pack(
    dst: number,
    dtype: number,
    outputs: number,
    inputs: number,
    gated: Flag,
    part: number,
    firstOutput: number,
    outputCount: number,
    src: number,
    rowStride: number,
    columnStride: number,
  ): void;

  /** Most rows of one call of `project`. */
  maxTileRows(): number;

  /** Bytes of scratch memory `project` needs: one such block for each thread. */
  scratchBytes(): number;

  /**
   * output[r] = activation(scale[slot of r] * (input[row of r] . matrix) + bias) for
   * r = 0 to rowCount - 1 and the outputs of panels firstPanel to firstPanel + panelCount - 1.
   * Products accumulate in float32. A result has the same bits whatever the other rows
   * and panels of the call are.
   *
   * @param input float32 rows, `inputStride` elements apart
   * @param rowIndex int32 [rowCount], the slot of each row; 0: the slot of r is r and so is its input row
   * @param rowDivisor the input row of r is its slot / rowDivisor; 0: it is r
   * @param rowCount 1 to maxTileRows
   * @param weights what `pack` wrote
   * @param bias float32 [outputs], then [outputs] gate biases if gated; or 0
   * @param scale float32, indexed by slot; or 0
   * @param activation ACTIVATION_CODE
   * @param alpha only for swiglu-clamped
   * @param limit only for swiglu-clamped
   * @param output float32; row r begins `outputStride` * r elements after it, at output 0 of the matrix
   * @param scratch scratchBytes() bytes whose contents do not matter
   */
  project(
    input: number,
    inputStride: number,
    rowIndex: number,
    rowDivisor: number,
    rowCount: number,
    weights: number,
    dtype: number,
    inputs: number,
    outputs: number,
    gated: Flag,
    firstPanel: number,
    panelCount: number,
    bias: number,
    scale: number,
    activation: number,
    alpha: number,
    limit: number,
    output: number,
    outputStride: number,
    scratch: number,
  ): void;

  /**
   * Tokens firstToken to firstToken + tokenCount - 1 from their expert rows, as
   * `CombineOperator` says. All addresses are those of token 0 (of row 0, for `rows`).
   *
   * @param rows float32 [slots, width], in row order
   * @param inverse int32 [tokens, topK]: the row of each slot, or -1
   * @param weights float32 [tokens, topK]; 0: every weight is 1
   * @param shared float32 [tokens, width], or 0; not used if `concat`
   * @param sharedScale float32 [tokens], ready multipliers of the shared rows, or 0
   * @param residual float32 [tokens, width], or 0; not used if `concat`
   * @param output float32 [tokens, width], or [tokens, topK * width] if `concat`
   */
  combine(
    firstToken: number,
    tokenCount: number,
    topK: number,
    width: number,
    rows: number,
    inverse: number,
    weights: number,
    shared: number,
    sharedScale: number,
    residual: number,
    output: number,
    concat: Flag,
  ): void;

  /** `count` elements at `src` to float32 at `dst`, exactly. The ranges must not overlap. */
  toFloat32(dst: number, src: number, count: number, dtype: number): void;

  /**
   * Writes `count` elements at `dst`: those from index `firstIndex` on of a fixed uniform
   * sequence over [-scale, scale], rounded to the element type. A value depends on seed and
   * index alone, so a tensor may be filled in parts.
   */
  fillUniform(
    dst: number,
    dtype: number,
    firstIndex: number,
    count: number,
    seed: number,
    scale: number,
  ): void;

  /** Sum of the float32 values in `bytes` bytes (a multiple of 128) at `src`: shows how fast memory can be read. */
  sum(src: number, bytes: number): number;
}

/**
 * Loads the best build of the kernels that this runtime can run.
 *
 * @throws DeviceUnavailableError if the kernels were not built, or the runtime lacks SIMD
 */
export async function compileKernels(): Promise<CompiledKernels> {
  const relaxed = await readKernels("relaxed");
  if (WebAssembly.validate(relaxed)) {
    return {
      module: await WebAssembly.compile(relaxed),
      variant: "relaxed-simd",
    };
  }
  const plain = await readKernels("simd");
  if (WebAssembly.validate(plain)) {
    return { module: await WebAssembly.compile(plain), variant: "simd" };
  }
  throw new DeviceUnavailableError(
    `Node ${process.versions.node} runs no WebAssembly SIMD on this machine, which the CPU device needs. Use Node 20.19 or later on a CPU with SSE4.1 or NEON.`,
  );
}

async function readKernels(name: "relaxed" | "simd"): Promise<Uint8Array<ArrayBuffer>> {
  const url = new URL(`./kernels.${name}.wasm`, import.meta.url);
  try {
    return await readFile(url);
  } catch (cause) {
    throw new DeviceUnavailableError(
      `Cannot read the CPU kernels ${url.pathname}. Build them with "npm run build:kernels".`,
      { cause },
    );
  }
}

/**
 * Rows that the inner loops carry at once. The largest loop keeps 12 sums, which fit
 * the registers of x86-64 only where V8 lets a fused multiply-add overwrite its
 * addend: since version 13 (Node 24).
 */
const GROUP_ROWS = Number.parseInt(process.versions.v8, 10) >= 13 ? 6 : 4;

/**
 * Binds the kernels to a memory, which must be shared and no larger than MAXIMUM_PAGES.
 *
 * @param groupRows 4 or 6; changes the speed of `project`, never its results
 */
export function instantiateKernels(
  module: WebAssembly.Module,
  memory: WebAssembly.Memory,
  groupRows = GROUP_ROWS,
): Kernels {
  const imports = { env: { memory }, rows: { groupRows } };
  return new WebAssembly.Instance(module, imports).exports as unknown as Kernels;
}
