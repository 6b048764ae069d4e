/**
 * The public API of Nexus, name by name: what is not here may change without notice.
 * Re-exports only; internal files do not import from here.
 */

export { SafetensorsFile, writeSafetensors } from "./checkpoint/index.ts";
export {
  type EnergyMeasured,
  EnergyMonitor,
  type EnergyReading,
  type EnergyWindow,
} from "./control/energy-monitor.ts";
export {
  GraphManager,
  type GraphManagerOptions,
  type GraphStatistics,
  type RecordedStep,
  type RunMode,
} from "./control/graph-manager.ts";
export type { HeatMultiples } from "./control/heat.ts";
export type { StepJoules, StepObservation } from "./control/observation.ts";
export type {
  BudgetedSliceId,
  ExpertLoad,
  ExpertSliceId,
  Heat,
  Placement,
  PlacementExplanation,
  Plan,
  Slice,
  SliceBudget,
  SliceId,
} from "./control/plan.ts";
export type { ProfileSnapshot } from "./control/profile-snapshot.ts";
export {
  type ExpertProfile,
  ExpertProfiler,
  type ProfileReport,
  type ProfilerOptions,
  type ProfileView,
} from "./control/profiler.ts";
export type { Reservation } from "./control/slices/demands.ts";
export {
  type PolicyName,
  SliceManager,
  type SliceManagerOptions,
} from "./control/slices/manager.ts";
export type { PlanningDevice } from "./control/slices/planning-device.ts";
export { AdaptivePolicy } from "./control/slices/policies/adaptive.ts";
export { DynamicPolicy } from "./control/slices/policies/dynamic.ts";
export { ProportionalPolicy } from "./control/slices/policies/proportional.ts";
export { StaticPolicy } from "./control/slices/policies/static.ts";
export {
  type Division,
  type LoadView,
  type Measurement,
  type Placing,
  placeByHeat,
  type SlicePolicy,
  type SliceWork,
  type WorkBySlice,
  weighByWork,
} from "./control/slices/policy.ts";
export {
  type StreamAssignment,
  StreamScheduler,
  type StreamSchedulerOptions,
} from "./control/stream-scheduler.ts";
export { Buckets, type DroppedSlot } from "./data/buckets.ts";
export { Experts, type ExpertsOptions } from "./data/experts.ts";
export type {
  ExpertTensors,
  LayerTensors,
  PerExpert,
} from "./data/host-weights.ts";
export { Router, type RouterOptions } from "./data/router.ts";
export type {
  AggregationSpec,
  ExpertsSpec,
  LayerSpec,
  RouterSpec,
  SharedExpertSpec,
} from "./data/spec.ts";
export type { LayerWeights, ProductWeights } from "./data/weights.ts";
export {
  CheckpointError,
  type CheckpointFault,
  DeviceFailedError,
  DeviceUnavailableError,
  DisposedError,
  InvalidArgumentError,
  InvalidLogitsError,
  NexusError,
  OutOfDeviceMemoryError,
  ShapeError,
  UnpackableWeightsError,
} from "./errors.ts";
export { listMigInstances, type MigListing } from "./execution/cuda/mig/instances.ts";
export { MigPool, type MigPoolOptions, MigWorker, openMigPool } from "./execution/cuda/mig/pool.ts";
export type {
  AllocateOptions,
  Availability,
  ComputeBudgets,
  Device,
  DeviceBuffer,
  DeviceEvent,
  DeviceKind,
  DeviceProperties,
  EnergySource,
  Graph,
  MemoryUsage,
  MigInstance,
  Packing,
  Projection,
  ProjectionPart,
  ProjectionSpec,
  Realisation,
  RowLayout,
  Stream,
  StreamOptions,
  WeightPacking,
} from "./execution/device.ts";
export { DeviceTensor } from "./execution/device-tensor.ts";
export { defaultDevice, type OpenDeviceOptions, openDevice } from "./execution/open.ts";
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
