/** Reading one MoE layer out of a checkpoint directory: the checkpoint plane's front door. */

import type { LayerSpec } from "../data/spec.ts";
import type { LayerWeights } from "../data/weights.ts";
import { bindLayer } from "./binding.ts";
import { Checkpoint } from "./checkpoint.ts";
import { familyOf } from "./families/index.ts";

export { SafetensorsFile } from "./safetensors/reader.ts";
export { writableTarget, writeSafetensors } from "./safetensors/writer.ts";

/** One layer of a checkpoint, checked, its weights still on disk. */
export interface CheckpointLayer {
  /** Model family, as people write it. */
  readonly family: string;
  readonly layer: number;
  readonly spec: LayerSpec;
  /** Paths of all files of the checkpoint, those of other layers too. */
  readonly files: readonly string[];
  /** Reads from the checkpoint's files, which it closes when disposed of. */
  readonly weights: LayerWeights & AsyncDisposable;
}

/**
 * Opens a hub-format checkpoint and checks every tensor of one layer, by the files'
 * headers alone; no weight is read before it is asked for.
 *
 * @param directory holds config.json and safetensors, single or sharded
 * @param options.layer decoder layer, counted from 0
 * @throws CheckpointError for anything wrong with the checkpoint or the layer; `fault` says what
 */
export async function readLayer(
  directory: string,
  { layer }: { readonly layer: number },
): Promise<CheckpointLayer> {
  return layerOf(await Checkpoint.open(directory), layer);
}

/** As readLayer, from an open checkpoint, which is closed with the weights or on failure. */
export async function layerOf(checkpoint: Checkpoint, layer: number): Promise<CheckpointLayer> {
  try {
    const family = familyOf(checkpoint.config);
    const layout = family.describe(checkpoint.config, layer, checkpoint.names);
    const { spec, weights } = await bindLayer(checkpoint, layout);
    const close = () => checkpoint[Symbol.asyncDispose]();
    return {
      family: family.name,
      layer,
      spec,
      files: checkpoint.files,
      weights: { ...weights, [Symbol.asyncDispose]: close },
    };
  } catch (error) {
    await checkpoint[Symbol.asyncDispose]();
    throw error;
  }
}
