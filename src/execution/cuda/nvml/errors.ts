/** What NVML's return codes are called, and what to do about those that a user can do something about. */

import { DeviceFailedError } from "../../../errors.ts";

/** An NVML call failed. The message names the call, the code and the remedy. */
export class NvmlError extends DeviceFailedError {
  /** E.g. `"nvmlDeviceGetPowerUsage"`. */
  readonly call: string;
  /** E.g. `"NVML_ERROR_NOT_SUPPORTED"`. */
  readonly nvmlCode: string;

  constructor(call: string, code: number) {
    const { name, remedy } = meaningOf(code);
    super(`${call} failed with ${name}. ${remedy}`);
    this.call = call;
    this.nvmlCode = name;
  }
}

interface Meaning {
  readonly name: string;
  readonly remedy: string;
}

const UPDATE = "Update NVIDIA's driver.";
const REPORT =
  "This is a mistake in Nexus; please report it with the output of nexus doctor --json.";
const HARDWARE = "Run nvidia-smi and look for Xid errors in the kernel log (dmesg).";
const RESET =
  "Stop what uses the GPU and have an administrator reset it (nvidia-smi --gpu-reset) or reboot.";

/** Names without `NVML_ERROR_`, by code, as in nvml.h. */
const CODES: Readonly<Record<number, readonly [name: string, remedy: string]>> = {
  1: ["UNINITIALIZED", REPORT],
  2: ["INVALID_ARGUMENT", REPORT],
  3: ["NOT_SUPPORTED", "This GPU does not offer it."],
  4: ["NO_PERMISSION", "Ask an administrator for access to the GPU, or run as root."],
  5: ["ALREADY_INITIALIZED", REPORT],
  6: ["NOT_FOUND", "Compare with the UUIDs that nvidia-smi -L lists."],
  7: ["INSUFFICIENT_SIZE", REPORT],
  8: ["INSUFFICIENT_POWER", "Connect the GPU's external power cables."],
  9: ["DRIVER_NOT_LOADED", "Load NVIDIA's driver (sudo modprobe nvidia) or install it."],
  10: ["TIMEOUT", HARDWARE],
  11: ["IRQ_ISSUE", HARDWARE],
  12: [
    "LIBRARY_NOT_FOUND",
    "Install the driver's libraries, of the same version as its kernel module.",
  ],
  13: ["FUNCTION_NOT_FOUND", UPDATE],
  14: ["CORRUPTED_INFOROM", HARDWARE],
  15: ["GPU_IS_LOST", RESET],
  16: ["RESET_REQUIRED", RESET],
  17: [
    "OPERATING_SYSTEM",
    "The operating system or its container keeps the GPU from this process; check the permissions of /dev/nvidia*.",
  ],
  18: [
    "LIB_RM_VERSION_MISMATCH",
    "The driver's libraries and its kernel module differ in version: reboot, or reload the module, after an update.",
  ],
  19: ["IN_USE", "Stop what uses the GPU, then try again."],
  20: ["MEMORY", "Free some memory of the host, then try again."],
  21: ["NO_DATA", "Try again later."],
  23: ["INSUFFICIENT_RESOURCES", "Free some resources of the GPU, then try again."],
  25: ["ARGUMENT_VERSION_MISMATCH", UPDATE],
  26: ["DEPRECATED", "Update Nexus: the driver no longer has this call."],
  27: ["NOT_READY", "Try again later."],
  28: ["GPU_NOT_FOUND", "Compare with the UUIDs that nvidia-smi -L lists."],
  29: ["INVALID_STATE", HARDWARE],
  999: ["UNKNOWN", HARDWARE],
};

function meaningOf(code: number): Meaning {
  const known = CODES[code];
  return known === undefined
    ? { name: `NVML code ${code}`, remedy: HARDWARE }
    : { name: `NVML_ERROR_${known[0]}`, remedy: known[1] };
}

/** Codes that say of one reading that this GPU, driver or user cannot have it; all else works on. */
const ABSENT = [
  "NVML_ERROR_NOT_SUPPORTED",
  "NVML_ERROR_FUNCTION_NOT_FOUND",
  "NVML_ERROR_NO_PERMISSION",
  "NVML_ERROR_NO_DATA",
];

/** The value, or null where this GPU, driver or user cannot have it. */
export async function orNull<T>(reading: Promise<T>): Promise<T | null> {
  try {
    return await reading;
  } catch (error) {
    if (error instanceof NvmlError && ABSENT.includes(error.nvmlCode)) return null;
    throw error;
  }
}
