/**
 * Finds a layer's MoE block among the tensor names, or says why there is none.
 *
 * Prefixes are found by looking, because the same weights are saved as a causal LM
 * (`model.layers.`), inside a multimodal model (`language_model.model.layers.`) and
 * as a bare model (`layers.`). Whether a layer has experts at all is for the config
 * to say; where the names show a dense MLP all the same, the names are right.
 */

import { CheckpointError } from "../../errors.ts";
import type { ModelConfig } from "../config.ts";

const LAYER_PREFIXES = [
  "model.layers.",
  "language_model.model.layers.",
  "model.language_model.layers.",
  "layers.",
];

/** What quantisers call the tensors they put in a weight's place: fp8 and int scales, MXFP4 blocks, GPTQ and AWQ words. */
const QUANTISED_NAME =
  /(_blocks|_scales|\.weight_scale(_inv)?|\.weight_packed|\.qweight|\.qzeros|\.absmax)$/;

/** Where a family keeps its experts. */
export interface BlockSearch {
  readonly config: ModelConfig;
  readonly layer: number;
  readonly names: ReadonlySet<string>;
  /** Number of layers of the model. */
  readonly layers: number;
  /** Whether the config gives a layer experts. */
  readonly isSparse: (layer: number) => boolean;
  /** What the block may be called; the first is named in errors. */
  readonly blocks: readonly string[];
  /** What the router may be called; the first is named in errors. */
  readonly routers: readonly string[];
}

/** Full names, as in `model.layers.3.mlp` and `model.layers.3.mlp.gate`. */
export interface Block {
  readonly name: string;
  readonly router: string;
}

/**
 * @throws CheckpointError `unsupported` if the model has no such layer, if the layer is dense (both list
 *   the layers that do have experts), or if the block is quantised
 */
export function findBlock(search: BlockSearch): Block {
  const { config, layer, layers, names } = search;
  const prefix =
    LAYER_PREFIXES.find((candidate) => anyStartsWith(names, candidate)) ?? "model.layers.";
  if (!Number.isInteger(layer) || layer < 0 || layer >= layers) {
    throw unsupported(
      config,
      `has no layer ${layer}; it has ${layers} layers. ${sparseLayers(search, prefix)}`,
    );
  }
  const block = blockAt(search, prefix, layer);
  if (!search.isSparse(layer) || isDense(names, block)) {
    throw unsupported(
      config,
      `layer ${layer} is a dense MLP without experts. ${sparseLayers(search, prefix)}`,
    );
  }
  rejectQuantised(config, names, block.name);
  return block;
}

/** @throws CheckpointError `unsupported` if config.json says the weights are quantised */
export function rejectQuantisedConfig(config: ModelConfig): void {
  for (const part of [config, config.nested("text_config")]) {
    if (part.has("quantization_config")) {
      throw unsupported(config, `has a "quantization_config". ${DEQUANTISE}`);
    }
  }
}

const DEQUANTISE =
  "Quantised weights are not read: use a bfloat16 version of the checkpoint, or load it with its own library and save it dequantised.";

function rejectQuantised(config: ModelConfig, names: ReadonlySet<string>, block: string): void {
  for (const name of names) {
    if (name.startsWith(`${block}.`) && QUANTISED_NAME.test(name)) {
      throw new CheckpointError(
        "unsupported",
        config.file,
        `is part of a quantised weight. ${DEQUANTISE}`,
        name,
      );
    }
  }
}

function blockAt({ names, blocks, routers }: BlockSearch, prefix: string, layer: number): Block {
  const inLayer = (name: string) => `${prefix}${layer}.${name}`;
  const block = blocks.find((name) => anyStartsWith(names, `${inLayer(name)}.`)) ?? blocks[0];
  const name = inLayer(block as string);
  const router =
    routers.find((candidate) => names.has(`${name}.${candidate}.weight`)) ?? routers[0];
  return { name, router: `${name}.${router}` };
}

function isDense(names: ReadonlySet<string>, { name, router }: Block): boolean {
  return !names.has(`${router}.weight`) && names.has(`${name}.gate_proj.weight`);
}

/** A sentence listing the layers that have experts in the config and a router among the names. */
function sparseLayers(search: BlockSearch, prefix: string): string {
  const { names, layers, isSparse, blocks, routers } = search;
  const hasRouter = (n: number) =>
    blocks.some((block) =>
      routers.some((router) => names.has(`${prefix}${n}.${block}.${router}.weight`)),
    );
  const numbers = new Set<number>();
  for (const name of names) {
    if (name.startsWith(prefix)) numbers.add(Number.parseInt(name.slice(prefix.length), 10));
  }
  const sparse = [...numbers]
    .filter((n) => n < layers && isSparse(n) && hasRouter(n))
    .sort((a, b) => a - b);
  return sparse.length === 0
    ? "No layer of this checkpoint has experts."
    : `Layers with experts: ${ranges(sparse)}.`;
}

/** Runs of layers that a message lists; models have one or two. */
const RANGES_IN_ERROR = 16;

/** [1, 3, 4, 5] as "1, 3-5". */
function ranges(numbers: readonly number[]): string {
  const parts: string[] = [];
  for (let i = 0; i < numbers.length; ) {
    let j = i;
    while (numbers[j + 1] === (numbers[j] as number) + 1) j++;
    parts.push(i === j ? `${numbers[i]}` : `${numbers[i]}-${numbers[j]}`);
    i = j + 1;
  }
  if (parts.length > RANGES_IN_ERROR) parts.splice(RANGES_IN_ERROR, parts.length, "...");
  return parts.join(", ");
}

function anyStartsWith(names: ReadonlySet<string>, prefix: string): boolean {
  for (const name of names) if (name.startsWith(prefix)) return true;
  return false;
}

function unsupported(config: ModelConfig, message: string): CheckpointError {
  return new CheckpointError("unsupported", config.file, message);
}
