/** What a process and its workers on MIG instances say to each other, as JSON over Node's channel between them. */

import type { DeviceKind } from "../../device.ts";

export type Request =
  /** Comes first. Answered with the device's properties. */
  | { readonly kind: "open"; readonly device: DeviceKind }
  /** Answered with what the function returns. */
  | {
      readonly kind: "run";
      /** URL of a module. */
      readonly module: string;
      /** The name it exports a function by. */
      readonly name: string;
      readonly argument: unknown;
    }
  /** Answered with the device's memory in use. */
  | { readonly kind: "memory" }
  /** Answered once the device is closed; the process ends after that. */
  | { readonly kind: "close" };

export interface Question {
  readonly id: number;
  readonly request: Request;
}

export interface Failure {
  /** Of a NexusError; null for any other. */
  readonly code: string | null;
  readonly message: string;
  readonly stack: string | undefined;
}

export type Answer =
  | { readonly id: number; readonly value: unknown }
  | { readonly id: number; readonly failure: Failure };
