/** The public API of Nexus. Re-exports only; internal files do not import from here. */

export { SafetensorsFile, writeSafetensors } from "./checkpoint/index.ts";
export * from "./control/index.ts";
export type * from "./control/plan.ts";
export { Buckets, type DroppedSlot } from "./data/buckets.ts";
export { Experts } from "./data/experts.ts";
export type {
  ExpertTensors,
  LayerTensors,
  PerExpert,
} from "./data/host-weights.ts";
export { Router, type RouterOptions } from "./data/router.ts";
export type * from "./data/spec.ts";
export type { LayerWeights, ProductWeights } from "./data/weights.ts";
export * from "./errors.ts";
export type { MigInstance } from "./execution/cuda/mig/instances.ts";
export { MigPool, type MigPoolOptions, MigWorker, openMigPool } from "./execution/cuda/mig/pool.ts";
export type * from "./execution/device.ts";
export { DeviceTensor } from "./execution/device-tensor.ts";
export { defaultDevice, openDevice } from "./execution/open.ts";
export type {
  Activation,
  GroupLimit,
  RoutingRule,
} from "./execution/operators.ts";
export type { ControlLoop, ControlOptions } from "./layer/control-loop.ts";
export type {
  ForwardOptions,
  ForwardResult,
  ForwardStats,
  LayerOptions,
  LayerStatistics,
  Routing,
} from "./layer/forward.ts";
export { MoELayer } from "./layer/moe-layer.ts";
export {
  type ScheduleOptions,
  type ScheduleResult,
  schedule,
} from "./layer/schedule.ts";
export type {
  DType,
  MatrixView,
  Tensor,
  TensorData,
  TensorLike,
} from "./tensor.ts";
