/** What a model family is to the checkpoint plane: a reader of its own conventions, and nothing that runs. */

import type { ModelConfig } from "../config.ts";
import type { LayerLayout } from "../layout.ts";

export interface ModelFamily {
  readonly name: string;
  /** Values of `model_type` in config.json that mean this family. */
  readonly modelTypes: readonly string[];
  /**
   * Says what a layer is and where its tensors are. Looks at names alone; whether the
   * tensors are there and fit is checked afterwards, for all families alike.
   *
   * @throws CheckpointError `bad-config`, or `unsupported` for a layer that has no experts or a form Nexus cannot run
   */
  describe(config: ModelConfig, layer: number, names: ReadonlySet<string>): LayerLayout;
}
