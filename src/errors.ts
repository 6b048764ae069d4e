/**
 * The errors that Nexus throws on purpose. Each one names the offending value
 * and says what to do about it; anything else that escapes is a bug in Nexus.
 *
 * `code` is stable and meant for programs, `message` for people.
 */

import { printablePath, quote } from "./errors/wording.ts";

/** Base class of every error that Nexus throws on purpose. */
export class NexusError extends Error {
  /** Stable identifier, e.g. `"ERR_INVALID_ARGUMENT"`. */
  readonly code: string;

  constructor(code: string, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
    this.code = code;
  }
}

/** A parameter is out of range, of the wrong type or contradicts another. */
export class InvalidArgumentError extends NexusError {
  constructor(message: string, options?: ErrorOptions) {
    super("ERR_INVALID_ARGUMENT", message, options);
  }
}

/** A tensor's shape or element type does not fit its use. */
export class ShapeError extends NexusError {
  constructor(message: string) {
    super("ERR_SHAPE", message);
  }
}

/** A row of router logits gives no finite weights (it holds NaN or +Infinity, or is -Infinity throughout). */
export class InvalidLogitsError extends NexusError {
  /** Index of the first offending row. */
  readonly row: number;

  constructor(row: number) {
    super(
      "ERR_INVALID_LOGITS",
      `Router logits of row ${row} give no finite weights (NaN, +Infinity, or -Infinity throughout). Check the hidden states and gate weights that produced this row.`,
    );
    this.row = row;
  }
}

/** The device has no room for an allocation, or the host none for memory that the device is to reach (page-locked). */
export class OutOfDeviceMemoryError extends NexusError {
  readonly requestedBytes: number;
  readonly availableBytes: number;

  constructor(label: string, requestedBytes: number, availableBytes: number, remedy: string) {
    super(
      "ERR_OUT_OF_DEVICE_MEMORY",
      `Cannot allocate ${requestedBytes} bytes for ${label}: ${availableBytes} bytes are available. ${remedy}`,
    );
    this.requestedBytes = requestedBytes;
    this.availableBytes = availableBytes;
  }
}

/** Weights cannot be packed without loss: `packWeights` is not for them. */
export class UnpackableWeightsError extends NexusError {
  /** Index of the matrix; undefined where all matrices of a projection were written at once. */
  readonly matrix: number | undefined;
  /** How much did not fit: blocks of 16 rows and 64 columns with more than 8 weights that need a patch, rows that are not finite, and weights too small to be scaled. */
  readonly failures: number;

  constructor(label: string, matrix: number | undefined, failures: number) {
    const which = matrix === undefined ? `"${label}"` : `Matrix ${matrix} of "${label}"`;
    super(
      "ERR_UNPACKABLE_WEIGHTS",
      `${which} cannot be packed without loss, in ${failures} ${failures === 1 ? "place" : "places"}: there are NaN or infinities, or in a block of 16 rows x 64 columns more than 8 zeros or weights that are far from the others of their row. Leave packWeights out.`,
    );
    this.matrix = matrix;
    this.failures = failures;
  }
}

/** The device asked for is not there or cannot be used. */
export class DeviceUnavailableError extends NexusError {
  constructor(message: string, options?: ErrorOptions) {
    super("ERR_DEVICE_UNAVAILABLE", message, options);
  }
}

/** The device failed while it worked (a worker thread died, a driver call failed). */
export class DeviceFailedError extends NexusError {
  constructor(message: string, options?: ErrorOptions) {
    super("ERR_DEVICE_FAILED", message, options);
  }
}

/** An object was used after it was closed. */
export class DisposedError extends NexusError {
  constructor(what: string) {
    super("ERR_DISPOSED", `${what} is closed. Create a new one.`);
  }
}

/** Why a checkpoint was refused. */
export type CheckpointFault =
  | "missing-file"
  | "truncated"
  | "bad-header"
  | "bad-offsets"
  | "overlap"
  | "wrong-dtype"
  | "missing-tensor"
  | "wrong-shape"
  | "bad-config"
  | "unsupported";

/** A checkpoint cannot be used. Names the file and, where one is at fault, the tensor. */
export class CheckpointError extends NexusError {
  readonly fault: CheckpointFault;
  readonly file: string;
  readonly tensor: string | undefined;

  constructor(
    fault: CheckpointFault,
    file: string,
    message: string,
    tensor?: string,
    options?: ErrorOptions,
  ) {
    super(
      `ERR_CHECKPOINT_${fault.toUpperCase().replaceAll("-", "_")}`,
      `${printablePath(file)}: ${tensor === undefined ? "" : `tensor ${quote(tensor)}: `}${message}`,
      options,
    );
    this.fault = fault;
    this.file = file;
    this.tensor = tensor;
  }
}
