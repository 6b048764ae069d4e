/**
 * The expert every token goes through, beside the routed ones, with or without a
 * gate of its own. It reads hidden states and nothing of the routing, so it can
 * run while tokens are still being routed.
 */

import { ShapeError } from "../errors.ts";
import type { Device, Projection, ProjectionSpec, Stream } from "../execution/device.ts";
import type { AllRows } from "../execution/operators.ts";
import type { DType } from "../tensor.ts";
import { Experts } from "./experts.ts";
import { fittingMatrix } from "./fit.ts";
import type { SharedExpertSpec } from "./spec.ts";
import type { StepBuffers } from "./step-buffers.ts";
import type { LayerWeights } from "./weights.ts";

export class SharedExpert implements Disposable {
  readonly #experts: Experts;
  readonly #gate: Projection | undefined;

  private constructor(experts: Experts, gate: Projection | undefined) {
    this.#experts = experts;
    this.#gate = gate;
  }

  /** On failure nothing stays allocated. @param rowWeights see `rowWeightsOf` */
  static async load(
    device: Device,
    spec: SharedExpertSpec,
    source: LayerWeights,
    rowWeights: DType,
  ): Promise<SharedExpert> {
    const weights = await source.shared?.();
    if (weights === undefined) throw new ShapeError("The shared expert's weights are missing.");
    const experts = await Experts.load(device, spec.experts, 1, async () => weights, {
      rowWeights,
    });
    if (!spec.gate) return new SharedExpert(experts, undefined);
    let gate: Projection | undefined;
    try {
      const { hiddenSize } = spec.experts;
      const what = "The shared expert's gate";
      const matrix = fittingMatrix(await source.sharedGate?.(), what, 1, hiddenSize);
      const shape: ProjectionSpec = {
        count: 1,
        inputs: hiddenSize,
        outputs: 1,
        dtype: matrix.dtype,
        input: device.rowLayout(hiddenSize, rowWeights).dtype,
        output: "float32",
        gated: false,
        bias: false,
      };
      gate = device.createProjection(shape, "shared expert gate");
      await gate.write(0, "value", matrix);
    } catch (error) {
      gate?.[Symbol.dispose]();
      experts[Symbol.dispose]();
      throw error;
    }
    return new SharedExpert(experts, gate);
  }

  /** Bytes of device memory the weights take. */
  get byteLength(): number {
    return this.#experts.byteLength + (this.#gate?.byteLength ?? 0);
  }

  /** Enqueues the expert on the hidden states in `buffers`, `mostTokens` at most. */
  record(stream: Stream, buffers: StepBuffers, mostTokens: number): void {
    const shared = buffers.shared;
    if (shared === undefined) throw new ShapeError("The step has no buffers for a shared expert.");
    const { tokens, hidden } = buffers;
    const rows: AllRows = { from: "all", tokens, mostTokens, matrix: 0 };
    this.#experts.record(stream, hidden, shared.inner, shared.rows, rows);
    if (this.#gate === undefined || shared.scale === undefined) return;
    stream.enqueue({
      kind: "project",
      projection: this.#gate,
      activation: { kind: "sigmoid" },
      input: hidden,
      output: shared.scale,
      rows,
    });
  }

  /** Frees the weights; harmless when repeated. */
  [Symbol.dispose](): void {
    this.#gate?.[Symbol.dispose]();
    this.#experts[Symbol.dispose]();
  }
}
