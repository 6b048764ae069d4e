/**
 * bfloat16 weights on the GPU in 12 bits each, without loss (packed-layout.ts): products of few rows an expert, which wait for
 * weights, read a quarter less. Products of buckets read them (operators/packed.ts) and decode does (operators/decode-weights.ts);
 * dense products and gates are for plain projections.
 *
 * A matrix is packed as a whole. So what is written goes to panels in scratch memory of that matrix first, and once all its parts
 * are there, gate and value of a gated one, a kernel packs them and the scratch memory is freed. A part that is alone waits for the
 * other one there, and products read what was packed before: also where one part of a matrix is written anew, which takes effect
 * when the other one is written again. Whoever writes the parts of a matrix one after the other has one matrix waiting at a time.
 *
 * Not every matrix can be packed. The kernel counts what does not fit, and then writing throws; the matrix is of no use until
 * the part that was written last, or all of them, are written again.
 */

import { UnpackableWeightsError } from "../../errors.ts";
import type { MatrixView } from "../../tensor.ts";
import type { ProjectionPart, ProjectionSpec } from "../device.ts";
import { checkMatrix, checkPlace } from "../projection-checks.ts";
import type { CudaBuffer } from "./buffer.ts";
import { MatrixParts, partNames } from "./matrix-parts.ts";
import { persistentGrid } from "./operators/grids.ts";
import { kernelWork, type OwnKernelWork } from "./operators/kernel-work.ts";
import { BLOCK_WORDS, type PackedLayout, packedLayout } from "./packed-layout.ts";
import { checkNoise, fillPanels, type Panels, panelBytes, writePanels } from "./panels.ts";
import { CudaProjection, checkNumbers, type ProjectionOwner, sizesOf } from "./projection.ts";
import { PANEL } from "./rows.ts";
import type { TensorMapMeta } from "./tensor-maps.ts";
import type { MemoryRange } from "./work.ts";

/** Bytes of the word in which the kernel counts what does not fit. */
const FAILURES_BYTES = 4;

export class PackedProjection extends CudaProjection implements Panels {
  readonly panel = PANEL;
  readonly #layout: PackedLayout;
  /** Panels of matrices on their way. */
  readonly #pending = new Map<number, CudaBuffer>();
  readonly #parts: MatrixParts;

  /**
   * Reserves the memory, all zero.
   *
   * @param spec checked to be of weights that can be packed
   * @throws InvalidArgumentError if the spec makes no sense
   * @throws OutOfDeviceMemoryError
   */
  constructor(device: ProjectionOwner, spec: ProjectionSpec, label: string) {
    const sizes = sizesOf(spec);
    checkNumbers(spec, sizes, PANEL);
    const layout = packedLayout(spec.count, sizes);
    super(device, spec, sizes, layout.byteLength, label);
    this.#layout = layout;
    this.#parts = new MatrixParts(spec);
  }

  /** Patches, of which products on buckets read few and decode all, a hundredth of the bytes, are left out. */
  get weightBytes(): number {
    const { words, scales, flags } = this.#layout;
    return this.spec.count * (words.bytes + scales.bytes + flags.bytes);
  }

  get weights(): MemoryRange {
    return { address: this.address, bytes: this.#layout.patches.offset };
  }

  /** Addresses of what kernels read beside words, of the first matrix. */
  get tables(): Readonly<Record<"scales" | "flags" | "patches", bigint>> {
    const { scales, flags, patches } = this.#at(0);
    return { scales, flags, patches };
  }

  /** Blocks of 64 rows and 64 columns, in the order [count, k / 64, n / 64], as planes of words. */
  tensorMap(meta: Omit<TensorMapMeta, "argument">): Uint8Array {
    const blocks = (this.spec.count * this.k * this.n) / PANEL ** 2;
    return this.mapped({ element: "int32", shape: [blocks, ...BLOCK_WORDS] }, meta);
  }

  /** @throws UnpackableWeightsError, OutOfDeviceMemoryError, and as CudaProjection says */
  async write(index: number, part: ProjectionPart, matrix: MatrixView): Promise<void> {
    checkPlace(this, index, part);
    checkMatrix(this, matrix);
    const scratch = this.#pendingOf(index);
    let whole = false;
    try {
      whole = await this.#parts.write(index, part, () =>
        writePanels(this.device, this, scratch.address, part, matrix, () => this.requireOpen()),
      );
    } finally {
      if (this.#parts.none(index)) this.#drop(index);
    }
    if (!whole) return;
    // Whoever writes a part meanwhile begins anew.
    this.#pending.delete(index);
    this.#parts.set(index, []);
    try {
      await this.packFrom(scratch.address, index, 1);
      scratch[Symbol.dispose]();
    } catch (error) {
      this.#putBack(index, part, scratch, error);
      throw error;
    }
  }

  /** Takes scratch memory for all matrices as they are before they are packed. @throws UnpackableWeightsError, OutOfDeviceMemoryError */
  async fill(seed: number, scale: number): Promise<void> {
    this.requireOpen();
    checkNoise(seed, scale);
    const { count } = this.spec;
    using scratch = this.#scratch(count, "all matrices");
    await this.device.transfers.runKernel(
      fillPanels(this.device, this, scratch.address, seed, scale),
    );
    await this.packFrom(scratch.address, 0, count);
  }

  /**
   * Packs matrices that lie in panels, which must be written, and stay as they are until this resolves.
   *
   * @param source address of the first of them
   * @param first its index
   * @throws UnpackableWeightsError, OutOfDeviceMemoryError
   */
  async packFrom(source: bigint, first: number, matrices: number): Promise<void> {
    this.requireOpen();
    using counted = this.device.scratch(FAILURES_BYTES, `${this.label}, what cannot be packed`);
    await this.device.transfers.runKernel(this.#packing(source, first, matrices, counted.address));
    const word = new Int32Array(1);
    await this.device.transfers.read(counted, word, 0);
    const [failures = 0] = word;
    if (failures === 0) return;
    throw new UnpackableWeightsError(this.label, matrices === 1 ? first : undefined, failures);
  }

  override [Symbol.dispose](): void {
    for (const index of [...this.#pending.keys()]) this.#drop(index);
    super[Symbol.dispose]();
  }

  #pendingOf(index: number): CudaBuffer {
    const known = this.#pending.get(index);
    if (known !== undefined) return known;
    const scratch = this.#scratch(1, `matrix ${index}`);
    this.#pending.set(index, scratch);
    return scratch;
  }

  /** A matrix that does not fit waits for another version of the part that was written last. */
  #putBack(index: number, part: ProjectionPart, scratch: CudaBuffer, error: unknown): void {
    const others = partNames(this.spec).filter((each) => each !== part);
    const waits = error instanceof UnpackableWeightsError && others.length > 0 && !this.closed;
    if (waits && !this.#pending.has(index)) {
      this.#pending.set(index, scratch);
      this.#parts.set(index, others);
    } else {
      scratch[Symbol.dispose]();
    }
  }

  #drop(index: number): void {
    this.#pending.get(index)?.[Symbol.dispose]();
    this.#pending.delete(index);
  }

  /** Room for the panels of so many matrices, all zero. */
  #scratch(matrices: number, what: string): CudaBuffer {
    const bytes = matrices * panelBytes(this);
    return this.device.scratch(bytes, `${this.label}, ${what} to be packed`);
  }

  #packing(source: bigint, first: number, matrices: number, failures: bigint): OwnKernelWork {
    const kernel = this.device.kernels.find({ operator: "pack_weights" });
    return kernelWork(
      this.device,
      kernel,
      {
        source,
        ...this.#at(first),
        failures,
        matrices,
        n: this.n,
        k: this.k,
        valid_columns: this.spec.inputs,
      },
      persistentGrid(kernel.entry, matrices, this.n),
    );
  }

  /** Addresses of a matrix' parts. */
  #at(matrix: number) {
    const { words, scales, flags, patches } = this.#layout;
    const at = ({ offset, bytes }: typeof words) => this.address + BigInt(offset + matrix * bytes);
    return { words: at(words), scales: at(scales), flags: at(flags), patches: at(patches) };
  }
}
