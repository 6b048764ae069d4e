/**
 * The modules a layer consists of, with their weights on a device: router,
 * experts, shared expert. Loaded together, freed together.
 */

import { decodeTokensOf } from "../data/decode.ts";
import { Experts } from "../data/experts.ts";
import { checkPackable } from "../data/packing.ts";
import { LayerRouter } from "../data/routing.ts";
import { SharedExpert } from "../data/shared-expert.ts";
import type { LayerSpec } from "../data/spec.ts";
import { rowWeightsOf } from "../data/step-buffers.ts";
import type { LayerWeights } from "../data/weights.ts";
import type { Device, Packing } from "../execution/device.ts";
import type { StepParts } from "./step.ts";

export class LayerModules implements Disposable {
  /** What recordStep() needs of them. */
  readonly parts: StepParts & { readonly routing: LayerRouter };

  private constructor(parts: StepParts & { readonly routing: LayerRouter }) {
    this.parts = parts;
  }

  /**
   * On failure nothing stays allocated.
   *
   * @param packWeights how the routed experts' weights are to be kept
   * @throws OutOfDeviceMemoryError, ShapeError, and what the source throws
   * @throws InvalidArgumentError, DeviceUnavailableError, before anything is done, if they cannot be packed;
   *   UnpackableWeightsError if they do not fit
   */
  static async load(
    device: Device,
    spec: LayerSpec,
    source: LayerWeights,
    packWeights: Packing = false,
  ): Promise<LayerModules> {
    const rowWeights = rowWeightsOf(spec);
    if (packWeights) checkPackable({ ...spec, rowWeights }, device.properties);
    const loaded: Disposable[] = [];
    const keep = <T extends Disposable>(module: T): T => {
      loaded.push(module);
      return module;
    };
    try {
      const routing = keep(await LayerRouter.load(device, spec, source, rowWeights));
      const experts = keep(
        await Experts.load(device, spec.experts, spec.router.experts, (i) => source.expert(i), {
          rowWeights,
          packWeights,
          ...(source.fillExperts && { fill: source.fillExperts.bind(source, device) }),
        }),
      );
      const shared =
        spec.shared && keep(await SharedExpert.load(device, spec.shared, source, rowWeights));
      return new LayerModules({
        routing,
        experts,
        ...(shared && { shared }),
        topK: spec.router.topK,
        aggregation: spec.aggregation,
        decodeTokens: decodeTokensOf(device.properties, spec, packWeights !== false),
      });
    } catch (error) {
      for (const module of loaded) module[Symbol.dispose]();
      throw error;
    }
  }

  /** Bytes of device memory that experts and shared expert take. */
  get byteLength(): number {
    return this.parts.experts.byteLength + (this.parts.shared?.byteLength ?? 0);
  }

  [Symbol.dispose](): void {
    this.parts.routing[Symbol.dispose]();
    this.parts.experts[Symbol.dispose]();
    this.parts.shared?.[Symbol.dispose]();
  }
}
