/**
 * The keys that a layer's graphs are kept under. A step looks its graph up by a
 * string; here each is put together once, so that a replayed step builds none.
 */

import { graphKey } from "../control/graph-manager.ts";
import type { Plan } from "../control/plan.ts";
import type { DType } from "../tensor.ts";

/** What decides which operators a step consists of, beside spec and plan. */
export interface StepVariant {
  /** From `tokenBucket`. */
  readonly mostTokens: number;
  readonly outputType: DType;
  /** Element type of given logits; absent: the gate computes them. */
  readonly logitsType?: DType;
}

/** Element types by number. */
const TYPES: readonly (DType | undefined)[] = [undefined, "float32", "bfloat16", "float16"];

export class StepKeys {
  readonly #spec: string;
  readonly #decodeTokens: number;
  #budgets = "";
  #lanes = "";
  /** Of the budgets and the lanes seen last, by a number made of the variant. */
  readonly #keys = new Map<number, string>();

  /**
   * @param spec stands for everything that is fixed
   * @param decodeTokens most tokens of a step without lanes
   */
  constructor(spec: string, decodeTokens: number) {
    this.#spec = spec;
    this.#decodeTokens = decodeTokens;
  }

  /** The key of a step under a plan. @param laneKey from the plan's stream assignment */
  get(plan: Plan, laneKey: string, variant: StepVariant): string {
    const budgets = budgetsOf(plan);
    if (this.#budgets !== budgets || this.#lanes !== laneKey) {
      this.#keys.clear();
      this.#budgets = budgets;
      this.#lanes = laneKey;
    }
    const { mostTokens, outputType, logitsType } = variant;
    const number =
      (mostTokens * TYPES.length + TYPES.indexOf(outputType)) * TYPES.length +
      TYPES.indexOf(logitsType);
    let key = this.#keys.get(number);
    if (key === undefined) {
      key = graphKey({
        spec: this.#spec,
        bucket: mostTokens,
        variant: `${logitsType ?? "gate"} to ${outputType}`,
        budgets,
        lanes: mostTokens <= this.#decodeTokens ? "none" : laneKey,
      });
      this.#keys.set(number, key);
    }
    return key;
  }
}

/**
 * The part of a plan's budgets that a graph holds for. Graphs follow the shared compute
 * budgets in force when they are launched, but not partitions, nor the cache set aside.
 */
function budgetsOf({ realisation, budgetKey, reservedCacheBytes }: Plan): string {
  const compute = realisation === "shared" ? "shared" : budgetKey;
  if (reservedCacheBytes === undefined) return compute;
  return `${compute} cache ${Object.values(reservedCacheBytes).join(" ")}`;
}
