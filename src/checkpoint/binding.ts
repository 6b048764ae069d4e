/**
 * Binds a layout to a checkpoint: holds every tensor the layout names against the
 * files' headers, then hands out weights by it. All faults of all tensors show before
 * the first byte of weight data is read.
 */

import type { ExpertsSpec, LayerSpec } from "../data/spec.ts";
import type { LayerWeights, ProductWeights } from "../data/weights.ts";
import { shapeText } from "../errors/wording.ts";
import { CheckpointError } from "../errors.ts";
import { type DType, type MatrixView, type Tensor, toFloat32 } from "../tensor.ts";
import type { Checkpoint } from "./checkpoint.ts";
import type {
  ExpertForm,
  LayerLayout,
  MatrixPart,
  Part,
  ProductParts,
  VectorPart,
} from "./layout.ts";
import { readAs } from "./safetensors/reader.ts";

export interface BoundLayer {
  readonly spec: LayerSpec;
  readonly weights: LayerWeights;
}

/**
 * Checks a layer's tensors and makes its spec and weights. The weights read from the
 * checkpoint when asked and keep nothing.
 *
 * @throws CheckpointError `missing-tensor`, `wrong-shape`, `wrong-dtype` (not a float type Nexus reads, or
 *   not the same through all experts), or what opening a shard gives
 */
export async function bindLayer(checkpoint: Checkpoint, layout: LayerLayout): Promise<BoundLayer> {
  const checker = new PartChecker(checkpoint);
  const { parts } = layout;
  // The router first: it disproves a forged expert count before anything is done that many times.
  await checker.check(parts.gate);
  for (const part of [parts.gateBias, parts.selectionBias, parts.sharedGate]) {
    if (part !== undefined) await checker.check(part);
  }
  const routed: ProductParts[] = [];
  for (let i = 0; i < layout.router.experts; i++) routed.push(...parts.expert(i));
  const experts = await checker.checkExperts(layout.experts, routed);
  const shared = layout.shared && {
    experts: await checker.checkExperts(layout.shared.experts, parts.shared ?? []),
    gate: layout.shared.gate,
  };
  const { hiddenSize, router, aggregation } = layout;
  return {
    spec: { hiddenSize, router, experts, ...(shared && { shared }), aggregation },
    weights: weightsOf(checkpoint, parts),
  };
}

/** Holds parts against the headers, each tensor once. */
class PartChecker {
  readonly #checkpoint: Checkpoint;
  readonly #dtypes = new Map<string, { dtype: DType; file: string }>();

  constructor(checkpoint: Checkpoint) {
    this.#checkpoint = checkpoint;
  }

  async check({ tensor, shape }: Part): Promise<{ dtype: DType; file: string }> {
    const known = this.#dtypes.get(tensor);
    if (known !== undefined) return known;
    const found = await this.#checkpoint.info(tensor);
    if (found.shape.join() !== shape.join()) {
      throw new CheckpointError(
        "wrong-shape",
        found.file,
        `has shape ${shapeText(found.shape)}, but config.json calls for [${shape.join(", ")}]. Check that the two belong together.`,
        tensor,
      );
    }
    const dtype = readAs(found.dtype);
    if (dtype === undefined || dtype === "int32") {
      throw new CheckpointError(
        "wrong-dtype",
        found.file,
        `is stored as ${found.dtype}; weights must be F32, BF16 or F16. Use a bfloat16 version of the checkpoint.`,
        tensor,
      );
    }
    const checked = { dtype, file: found.file };
    this.#dtypes.set(tensor, checked);
    return checked;
  }

  /** Checks all products of some experts and gives their form its one element type. */
  async checkExperts(form: ExpertForm, products: readonly ProductParts[]): Promise<ExpertsSpec> {
    let common: DType | undefined;
    for (const { value, gate, valueBias, gateBias } of products) {
      for (const part of gate === undefined ? [value] : [gate, value]) {
        const { dtype, file } = await this.check(part);
        common ??= dtype;
        if (dtype !== common) {
          throw new CheckpointError(
            "wrong-dtype",
            file,
            `is ${dtype}, but the experts before it are ${common}. Save the checkpoint with one element type for all experts.`,
            part.tensor,
          );
        }
      }
      for (const part of [valueBias, gateBias]) if (part !== undefined) await this.check(part);
    }
    return { ...form, dtype: common as DType };
  }
}

function weightsOf(checkpoint: Checkpoint, parts: LayerLayout["parts"]): LayerWeights {
  const matrix = async (part: MatrixPart) => viewOf(part, await readPart(checkpoint, part));
  const vector = async (part: VectorPart) => pick(part, await readPart(checkpoint, part));
  const { gateBias, selectionBias, shared, sharedGate } = parts;
  return {
    gate: () => matrix(parts.gate),
    expert: (index) => readProducts(checkpoint, parts.expert(index)),
    ...(gateBias && { gateBias: () => vector(gateBias) }),
    ...(selectionBias && { selectionBias: () => vector(selectionBias) }),
    ...(shared && { shared: () => readProducts(checkpoint, shared) }),
    ...(sharedGate && { sharedGate: () => matrix(sharedGate) }),
  };
}

/** Reads an expert's products; a slice that holds several of its matrices is read once. */
async function readProducts(
  checkpoint: Checkpoint,
  products: readonly ProductParts[],
): Promise<readonly ProductWeights[]> {
  const slices = new Map<string, Promise<Tensor>>();
  const read = (part: Part) => {
    const slice = slices.get(part.tensor) ?? readPart(checkpoint, part);
    slices.set(part.tensor, slice);
    return slice;
  };
  return Promise.all(
    products.map(async ({ value, gate, valueBias, gateBias }) => ({
      value: viewOf(value, await read(value)),
      ...(gate && { gate: viewOf(gate, await read(gate)) }),
      ...(valueBias && { valueBias: pick(valueBias, await read(valueBias)) }),
      ...(gateBias && { gateBias: pick(gateBias, await read(gateBias)) }),
    })),
  );
}

function readPart(checkpoint: Checkpoint, { tensor, index }: Part): Promise<Tensor> {
  return index === undefined ? checkpoint.read(tensor) : checkpoint.readSlice(tensor, index);
}

function viewOf(part: MatrixPart, { dtype, data }: Tensor): MatrixView {
  const { offset, rows, columns, rowStride, columnStride } = part;
  return { dtype, data, offset, rows, columns, rowStride, columnStride };
}

function pick({ offset, length, stride }: VectorPart, tensor: Tensor): Float32Array {
  const values = toFloat32(tensor);
  if (offset === 0 && stride === 1 && length === values.length) return values;
  return Float32Array.from({ length }, (_, i) => values[offset + i * stride] as number);
}
