/**
 * What the families share: the config values they check the same way, and the few
 * ways in which experts are stored. A family file is then its own keys, defaults and
 * rule, and nothing else.
 */

import { z } from "zod";
import type { AggregationSpec } from "../../data/spec.ts";
import { quote } from "../../errors/wording.ts";
import { CheckpointError } from "../../errors.ts";
import type { Activation, GroupLimit } from "../../execution/operators.ts";
import type { ModelConfig } from "../config.ts";
import {
  type ExpertForm,
  matrix,
  type Outputs,
  type ProductParts,
  packedBias,
  packedColumns,
  packedRows,
  vector,
} from "../layout.ts";

// ---------------------------------------------------------------------------
// Config values

/** A count or an extent: 1 or more. */
export const size = z.int().positive();
/** A count that may be 0. */
export const count = z.int().nonnegative();
/** A flag; null means no, as in Python. */
export const flag = z.boolean().nullable().transform(Boolean);
/** Layer indices; null means none. */
const layerList = z
  .array(z.int())
  .nullable()
  .transform((list) => list ?? []);

/** The names transformers has for the activations Nexus has. */
const ACTIVATIONS: Readonly<Record<string, Activation>> = {
  silu: { kind: "silu" },
  swish: { kind: "silu" },
  relu: { kind: "relu" },
  gelu: { kind: "gelu" },
  gelu_python: { kind: "gelu" },
  gelu_new: { kind: "gelu-tanh" },
  gelu_pytorch_tanh: { kind: "gelu-tanh" },
};

/** @throws CheckpointError `unsupported` naming an activation Nexus does not have */
export function activationOf(config: ModelConfig, name: string): Activation {
  if (!Object.hasOwn(ACTIVATIONS, name)) {
    const known = Object.keys(ACTIVATIONS).join(", ");
    throw new CheckpointError(
      "unsupported",
      config.file,
      `"hidden_act" is ${quote(name)}, which Nexus does not compute. It has ${known}.`,
    );
  }
  return ACTIVATIONS[name] as Activation;
}

/** @throws CheckpointError `bad-config` if a token is to go to more experts than there are */
export function checkTopK(config: ModelConfig, topK: number, experts: number): void {
  if (topK > experts) {
    throw config.error(`"num_experts_per_tok" is ${topK}, but there are only ${experts} experts.`);
  }
}

/**
 * The group limit, as an object to spread into a rule: empty where every group may be chosen from.
 *
 * @throws CheckpointError `bad-config` if the experts cannot be grouped so
 */
export function groupLimit(
  config: ModelConfig,
  router: { readonly experts: number; readonly topK: number },
  groups: number | null,
  keep: number | null,
  score: GroupLimit["score"],
): { groupLimit?: GroupLimit } {
  if (groups === null || keep === null) {
    throw config.error(`"n_group" is ${groups} and "topk_group" ${keep}; both must be numbers.`);
  }
  if (groups === 1 && keep === 1) return {};
  const members = router.experts / groups;
  const fewest = score === "top2-sum" ? 2 : 1;
  if (
    !Number.isInteger(members) ||
    members < fewest ||
    keep > groups ||
    keep * members < router.topK
  ) {
    throw config.error(
      `${router.experts} experts in "n_group" ${groups} groups, ${router.topK} of them chosen from "topk_group" ${keep} groups, do not work out.`,
    );
  }
  return keep === groups ? {} : { groupLimit: { groups, keep, score } };
}

/** The weighted sum of expert outputs that all families but Llama-4 end with. */
export const WEIGHTED_SUM: AggregationSpec = {
  mode: "sum",
  weightsApplyTo: "output",
  residual: false,
};

/** The config keys that say which layers of a Qwen model have experts. */
export const qwenSparsity = {
  decoder_sparse_step: size.default(1),
  mlp_only_layers: layerList.default([]),
};

/** Whether a Qwen config gives a layer experts. */
export function isQwenSparse(
  layer: number,
  c: { num_experts: number; decoder_sparse_step: number; mlp_only_layers: number[] },
): boolean {
  return (
    c.num_experts > 0 &&
    (layer + 1) % c.decoder_sparse_step === 0 &&
    !c.mlp_only_layers.includes(layer)
  );
}

// ---------------------------------------------------------------------------
// Experts

/** Names of an expert's three linear layers. */
export interface ProjectionNames {
  readonly gate: string;
  readonly up: string;
  readonly down: string;
}

/** As in Llama and all that came after it. */
const GATE_UP_DOWN: ProjectionNames = {
  gate: "gate_proj",
  up: "up_proj",
  down: "down_proj",
};

/** As in the first Mixtral release, numbered in an order of their own. */
export const W1_W3_W2: ProjectionNames = { gate: "w1", up: "w3", down: "w2" };

/** The form of a gated expert. */
export function gated(
  hiddenSize: number,
  intermediateSize: number,
  activation: Activation,
  bias = false,
): ExpertForm {
  return { form: "gated", hiddenSize, intermediateSize, activation, bias };
}

/** An expert that is three linear layers, each a tensor of its own. */
export function linearExpert(
  prefix: string,
  { hiddenSize: hidden, intermediateSize: intermediate, bias }: ExpertForm,
  names: ProjectionNames = GATE_UP_DOWN,
): readonly ProductParts[] {
  const biasOf = (name: string, length: number) => vector(`${prefix}.${name}.bias`, length);
  return [
    {
      value: matrix(`${prefix}.${names.up}.weight`, intermediate, hidden),
      gate: matrix(`${prefix}.${names.gate}.weight`, intermediate, hidden),
      ...(bias && {
        valueBias: biasOf(names.up, intermediate),
        gateBias: biasOf(names.gate, intermediate),
      }),
    },
    {
      value: matrix(`${prefix}.${names.down}.weight`, hidden, intermediate),
      ...(bias && { valueBias: biasOf(names.down, hidden) }),
    },
  ];
}

/**
 * The routed experts of a family that stores every expert by itself. Checkpoints saved
 * under the names transformers uses in memory hold them packed instead: gate above up
 * in [experts, 2 * intermediate, hidden], down in [experts, hidden, intermediate].
 */
export function routedExperts(
  block: string,
  names: ReadonlySet<string>,
  experts: number,
  form: ExpertForm,
  projections: ProjectionNames = GATE_UP_DOWN,
): (index: number) => readonly ProductParts[] {
  const gateUp = `${block}.experts.gate_up_proj`;
  const isPacked = names.has(gateUp) && !names.has(`${block}.experts.0.${projections.gate}.weight`);
  if (!isPacked) {
    return (index) => linearExpert(`${block}.experts.${index}`, form, projections);
  }
  const { hiddenSize: hidden, intermediateSize: intermediate } = form;
  const gateUpShape = [experts, 2 * intermediate, hidden] as const;
  return (index) => [
    {
      gate: packedRows(gateUp, gateUpShape, index, { count: intermediate }),
      value: packedRows(gateUp, gateUpShape, index, { count: intermediate, first: intermediate }),
    },
    {
      value: packedRows(`${block}.experts.down_proj`, [experts, hidden, intermediate], index, {
        count: hidden,
      }),
    },
  ];
}

/**
 * Experts that are always packed and stored transposed, as Llama-4 and gpt-oss do:
 * gate and up in [experts, hidden, 2 * intermediate], down in [experts, intermediate, hidden].
 * Biases, where there are any, are packed alike.
 *
 * @param order whether gate and up take turns (gpt-oss) or all of gate comes first (Llama-4)
 */
export function transposedExperts(
  block: string,
  experts: number,
  { hiddenSize: hidden, intermediateSize: intermediate, bias }: ExpertForm,
  order: "interleaved" | "concatenated",
): (index: number) => readonly ProductParts[] {
  const gateUp = `${block}.experts.gate_up_proj`;
  const down = `${block}.experts.down_proj`;
  const gateUpShape = [experts, hidden, 2 * intermediate] as const;
  const step = order === "interleaved" ? 2 : 1;
  const gate: Outputs = { count: intermediate, step };
  const up: Outputs = { count: intermediate, step, first: step === 2 ? 1 : intermediate };
  const all: Outputs = { count: hidden };
  const biasShape = [experts, 2 * intermediate] as const;
  return (index) => [
    {
      gate: packedColumns(gateUp, gateUpShape, index, gate),
      value: packedColumns(gateUp, gateUpShape, index, up),
      ...(bias && {
        gateBias: packedBias(`${gateUp}_bias`, biasShape, index, gate),
        valueBias: packedBias(`${gateUp}_bias`, biasShape, index, up),
      }),
    },
    {
      value: packedColumns(down, [experts, intermediate, hidden], index, all),
      ...(bias && { valueBias: packedBias(`${down}_bias`, [experts, hidden], index, all) }),
    },
  ];
}
