/** The control plane: who runs where and when, what it costs, and what is remembered of it. Re-exports only. */

export * from "./energy-monitor.ts";
export * from "./graph-manager.ts";
export * from "./heat.ts";
export * from "./plan.ts";
export type { ProfileSnapshot } from "./profile-snapshot.ts";
export * from "./profiler.ts";
export type { Reservation } from "./slices/demands.ts";
export * from "./slices/manager.ts";
export type { PlanningDevice } from "./slices/planning-device.ts";
export * from "./slices/policies/adaptive.ts";
export * from "./slices/policies/dynamic.ts";
export * from "./slices/policies/proportional.ts";
export * from "./slices/policies/static.ts";
export type {
  Division,
  LoadView,
  Measurement,
  Placing,
  SlicePolicy,
  SliceWork,
  WorkBySlice,
} from "./slices/policy.ts";
export { placeByHeat, weighByWork } from "./slices/policy.ts";
export * from "./stream-scheduler.ts";
