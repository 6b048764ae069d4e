/** What a CUDA device says of itself. */

import type { DeviceProperties, WeightPacking } from "../device.ts";
import type { Activation } from "../operators.ts";
import type { KernelSet } from "./bundle/kernel-set.ts";
import type { DeviceFacts } from "./driver/driver.ts";
import type { MigOfDevice } from "./mig/instances.ts";
import { activationSets } from "./operators/choice.ts";
import { DECODE_TOKENS } from "./operators/decode.ts";
import { ROW_TYPES } from "./rows.ts";

/** Tensor-core instructions that Triton compiles products to, by major compute capability. */
const MATRIX_INSTRUCTIONS: Readonly<Record<number, string>> = { 9: "wgmma", 10: "tcgen05" };

/**
 * Streams that a layer's experts are best spread over: a persistent grid fills the GPU
 * by itself, and a second one only adds launches (measured on an H200).
 */
const RECOMMENDED_STREAMS = 1;

/**
 * @param partitions why multiprocessors cannot be divided, or null
 * @param mig what NVML lists of MIG instances
 */
export function cudaProperties(
  facts: DeviceFacts,
  kernels: Pick<KernelSet, "architecture" | "manifest" | "all">,
  partitions: string | null,
  mig: MigOfDevice,
): DeviceProperties {
  return {
    kind: "cuda",
    name: facts.name,
    computeUnits: facts.multiprocessors,
    // A partition may get more than it asks for: the driver deals multiprocessors out in
    // groups (of 8, or 2, on an H200).
    computeUnitGranularity: 1,
    memoryBytes: facts.memoryBytes,
    memoryBytesPerSecond: facts.memoryBytesPerSecond,
    cacheBytes: facts.l2Bytes,
    features: features(facts, kernels),
    weightDTypes: ROW_TYPES,
    logitsDTypes: ROW_TYPES,
    realisations: {
      shared: { available: true },
      partitioned:
        partitions === null ? { available: true } : { available: false, reason: partitions },
      mig: mig.availability,
    },
    migInstances: mig.instances,
    enforces: {
      bandwidth: {
        available: false,
        reason:
          "A GPU has no switch for a kernel's share of memory bandwidth. It is budgeted through the multiprocessors: fewer of them ask for less.",
      },
      cache:
        facts.maxPersistingL2Bytes > 0
          ? { available: true }
          : { available: false, reason: `${facts.name} cannot set parts of its L2 cache aside.` },
    },
    timesExperts: {
      available: false,
      reason:
        "The experts of a lane run in one kernel, tile by tile on all multiprocessors; reading clocks in it would slow it down.",
    },
    recommendedStreams: RECOMMENDED_STREAMS,
    decodeTokens: DECODE_TOKENS,
    packsWeights: packing(facts, kernels),
  };
}

function packing(
  { name }: DeviceFacts,
  kernels: Pick<KernelSet, "architecture" | "manifest" | "all">,
): WeightPacking {
  const operators = [
    "pack_weights",
    "project_packed",
    "decode_packed_first",
    "decode_packed_second",
  ];
  if (operators.some((operator) => kernels.all({ operator }).length === 0)) {
    const { architecture } = kernels;
    const reason = `The kernel bundle has no ${architecture} kernels for packed weights, which ${name} would need.`;
    return { available: false, reason };
  }
  const { manifest } = kernels;
  const kinds = Object.keys(manifest.activations) as Activation["kind"][];
  const gated = (kind: Activation["kind"]) => activationSets(manifest, { kind }, true);
  return { available: true, activations: kinds.filter((kind) => gated(kind)[0] === "logistic") };
}

function features(
  { capability }: DeviceFacts,
  { architecture, manifest }: Pick<KernelSet, "architecture" | "manifest">,
): readonly string[] {
  const own = manifest.kernels.filter(({ arch }) => arch === architecture);
  const usesTensorMaps = own.some(({ args }) => args.some(({ type }) => type === "tensormap"));
  const instructions = architecture === "ptx" ? undefined : MATRIX_INSTRUCTIONS[capability[0]];
  return [architecture, instructions ?? "mma", ...(usesTensorMaps ? ["tma"] : [])];
}
