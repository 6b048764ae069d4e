/**
 * A set of experts of one form, with their weights on a device: the chain of
 * matrix products that turns a token's hidden state into an expert's output.
 * Which expert runs where is not decided here; a lane's work list says.
 */

import { shown } from "../errors/wording.ts";
import { DisposedError, InvalidArgumentError, ShapeError } from "../errors.ts";
import { type Fields, requireOptions } from "../execution/checks.ts";
import type {
  Device,
  DeviceBuffer,
  Packing,
  Projection,
  ProjectionSpec,
  Stream,
} from "../execution/device.ts";
import { defaultDevice } from "../execution/open.ts";
import type { Activation, AllRows, BucketRows } from "../execution/operators.ts";
import type { DType, MatrixView } from "../tensor.ts";
import { copyOf } from "./copied-spec.ts";
import { type ExpertTensors, hostExpertWeights } from "./host-weights.ts";
import { checkPackable, requirePacking } from "./packing.ts";
import type { ExpertsSpec } from "./spec.ts";
import { productCount, weightBytesOf } from "./step-buffers.ts";
import { validateExpertCount, validateExpertsSpec } from "./validate.ts";
import type { ProductWeights } from "./weights.ts";

const NO_ACTIVATION: Activation = { kind: "none" };

/** Where experts made of tensors go, and how their weights are kept. */
export interface ExpertsOptions {
  /** Default: the device of `defaultDevice()`. */
  readonly device?: Device;
  /**
   * Keep bfloat16 weights in 12 bits each, without loss, where the device can (`properties.packsWeights`); `"beside"`: as they are, too.
   * For gated experts whose routing weights apply to the output. Default: false.
   */
  readonly packWeights?: Packing;
}

const OPTIONS: Fields<ExpertsOptions> = { device: true, packWeights: true };

/** What is particular about experts that are loaded. */
export interface LoadOptions {
  /** See `rowWeightsOf`; default: the experts' own element type. */
  readonly rowWeights?: DType;
  readonly packWeights?: Packing;
  /** Writes all of the weights, instead of the source. */
  readonly fill?: (products: readonly Projection[]) => Promise<void>;
}

/** The experts' weights, on a device and ready to be scheduled. */
export class Experts implements Disposable {
  readonly device: Device;
  readonly spec: ExpertsSpec;
  /** Number of experts. */
  readonly count: number;
  /** Element type of weights that the rows they work on are laid out for. */
  readonly rowWeights: DType;
  /** How the weights are kept. */
  readonly packed: Packing;
  readonly #products: readonly Projection[];
  #closed = false;

  private constructor(
    device: Device,
    spec: ExpertsSpec,
    count: number,
    rowWeights: DType,
    packed: Packing,
    products: readonly Projection[],
  ) {
    this.device = device;
    this.spec = spec;
    this.count = count;
    this.rowWeights = rowWeights;
    this.packed = packed;
    this.#products = products;
  }

  /**
   * Copies host tensors to a device.
   *
   * @param tensors per-expert or packed; see ExpertTensors for the layouts
   * @throws InvalidArgumentError, ShapeError if spec and tensors do not fit together, or weights are to be packed that
   *   cannot be
   * @throws DeviceUnavailableError if weights are to be packed and the device cannot
   * @throws UnpackableWeightsError, OutOfDeviceMemoryError
   */
  static async fromTensors(
    spec: ExpertsSpec,
    count: number,
    tensors: ExpertTensors,
    options: ExpertsOptions = {},
  ): Promise<Experts> {
    validateExpertsSpec(spec, "experts");
    validateExpertCount(count);
    requireOptions(options, OPTIONS);
    const { packWeights = false } = options;
    requirePacking("options.packWeights", packWeights);
    const own = copyOf(spec);
    const weightsOf = hostExpertWeights(own, count, tensors, "experts");
    const device = options.device ?? (await defaultDevice());
    return Experts.load(device, own, count, async (i) => weightsOf(i), { packWeights });
  }

  /** Loads experts one after the other from a source; on failure nothing stays allocated. */
  static async load(
    device: Device,
    spec: ExpertsSpec,
    count: number,
    source: (index: number) => Promise<readonly ProductWeights[]>,
    { rowWeights = spec.dtype, packWeights = false, fill }: LoadOptions = {},
  ): Promise<Experts> {
    if (packWeights) checkPackable({ experts: spec, rowWeights }, device.properties);
    if (!device.properties.weightDTypes.includes(spec.dtype)) {
      throw new InvalidArgumentError(
        `The device cannot hold ${spec.dtype} weights. Use one of ${device.properties.weightDTypes.join(", ")}.`,
      );
    }
    const products: Projection[] = [];
    try {
      for (const [i, shape] of productShapes(spec).entries()) {
        const full: ProjectionSpec = {
          count,
          dtype: spec.dtype,
          input: device.rowLayout(shape.inputs, rowWeights).dtype,
          output: "rows",
          bias: spec.bias,
          ...(packWeights && { packed: packWeights }),
          ...shape,
        };
        products.push(device.createProjection(full, `expert weights, product ${i + 1}`));
      }
      await fill?.(products);
      for (let expert = 0; fill === undefined && expert < count; expert++) {
        const weights = await source(expert);
        if (!Array.isArray(weights)) {
          throw new InvalidArgumentError(
            `The weight source gave ${shown(weights)} for expert ${expert}; it must give the list of its products.`,
          );
        }
        for (const [i, projection] of products.entries()) {
          await writeProduct(projection, expert, weights[i], i);
        }
      }
    } catch (error) {
      for (const projection of products) projection[Symbol.dispose]();
      throw error;
    }
    return new Experts(device, spec, count, rowWeights, packWeights, products);
  }

  /** Bytes of device memory the weights take. */
  get byteLength(): number {
    return this.#products.reduce((sum, projection) => sum + projection.byteLength, 0);
  }

  /** Bytes of one expert as products read them: of those kept both ways, the weights as they are. */
  get expertBytes(): number {
    if (this.packed === "beside") return weightBytesOf(this.spec);
    return this.byteLength / this.count;
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** The device's weight blocks, first product to last. @throws DisposedError */
  get products(): readonly Projection[] {
    if (this.#closed) throw new DisposedError("The set of experts");
    return this.#products;
  }

  /**
   * Enqueues the experts' products.
   *
   * @param input rows of width H, by token if `rows` are bucketed
   * @param inner rows of width I for each product but the last
   * @param output rows of width H
   * @param rows all rows through one expert, or the buckets of one lane
   */
  record(
    stream: Stream,
    input: DeviceBuffer,
    inner: readonly DeviceBuffer[],
    output: DeviceBuffer,
    rows: AllRows | Omit<BucketRows, "gather">,
  ): void {
    const last = productCount(this.spec) - 1;
    this.products.forEach((projection, i) => {
      stream.enqueue({
        kind: "project",
        projection,
        activation: i === last ? NO_ACTIVATION : this.spec.activation,
        input: i === 0 ? input : (inner[i - 1] as DeviceBuffer),
        output: i === last ? output : (inner[i] as DeviceBuffer),
        rows: rows.from === "all" ? rows : bucketRows(rows, i === 0),
      });
    });
  }

  /** Frees the weights; harmless when repeated. */
  [Symbol.dispose](): void {
    this.#closed = true;
    for (const projection of this.#products) projection[Symbol.dispose]();
  }
}

/** Only the first product reads tokens, and only it is scaled when weights apply to the input. */
function bucketRows(rows: Omit<BucketRows, "gather">, first: boolean): BucketRows {
  if (first) return { ...rows, gather: true };
  const { inputScale: _, ...rest } = rows;
  return { ...rest, gather: false };
}

function productShapes(spec: ExpertsSpec) {
  const { hiddenSize, intermediateSize } = spec;
  const last = productCount(spec) - 1;
  return Array.from({ length: last + 1 }, (_, i) => ({
    inputs: i === 0 ? hiddenSize : intermediateSize,
    outputs: i === last ? hiddenSize : intermediateSize,
    gated: spec.form === "gated" && i === 0,
  }));
}

async function writeProduct(
  projection: Projection,
  index: number,
  weights: ProductWeights | undefined,
  product: number,
): Promise<void> {
  const { gated, bias, dtype } = projection.spec;
  const missing = (what: string): never => {
    throw new ShapeError(
      `Expert ${index} has no ${what} for product ${product + 1}; its form needs one.`,
    );
  };
  const fitting = (matrix: MatrixView): MatrixView => {
    if (matrix.dtype === dtype) return matrix;
    throw new ShapeError(
      `The weight source gave ${shown(matrix.dtype)} for product ${product + 1} of expert ${index}, and the experts' spec has dtype ${dtype}. Set that to ${shown(matrix.dtype)}, or convert the weights.`,
    );
  };
  // A source may be plain JavaScript, which gives null as well.
  if (weights === undefined || weights === null) return missing("weights");
  // One part right after the other: a matrix that is packed waits for both.
  await projection.write(index, "value", fitting(weights.value ?? missing("matrix")));
  if (gated) await projection.write(index, "gate", fitting(weights.gate ?? missing("gate")));
  if (!bias) return;
  projection.writeBias(index, "value", weights.valueBias ?? missing("bias"));
  if (gated) projection.writeBias(index, "gate", weights.gateBias ?? missing("gate bias"));
}
