/** The device a command runs on: from flags to an open device, and to what reports say about it. */

import { DeviceUnavailableError, InvalidArgumentError } from "../errors.ts";
import type { Device, DeviceProperties, Packing } from "../execution/device.ts";
import { openDevice } from "../execution/open.ts";

export interface DeviceFlags {
  readonly device: "auto" | "cpu" | "cuda";
  /** Worker threads of the CPU device. */
  readonly threads?: number;
  /** Which of the visible GPUs. */
  readonly gpu?: number;
  /** How a GPU multiplies float32 rows, where one is used. */
  readonly float32?: "ieee" | "tf32";
  /** How weights are to be kept; packed ones take a GPU. */
  readonly packWeights?: Packing;
}

export interface DeviceSummary
  extends Pick<
    DeviceProperties,
    "kind" | "name" | "computeUnits" | "memoryBytes" | "cacheBytes" | "features"
  > {
  /** Version of a GPU's driver, where the driver tells. */
  readonly driver?: string;
}

/**
 * --threads asks for the CPU and --gpu for a GPU; --float32 asks for neither, as in openDevice(), nor does --pack-weights.
 *
 * @throws InvalidArgumentError if the flags contradict each other
 * @throws DeviceUnavailableError saying why, and what would change that
 */
export async function openFromFlags(flags: DeviceFlags): Promise<Device> {
  const { device, threads, gpu, float32, packWeights = false } = flags;
  const forCpu = threads === undefined ? undefined : "--threads";
  const forGpu =
    gpu !== undefined
      ? "--gpu"
      : float32 !== undefined
        ? "--float32"
        : packWeights
          ? "--pack-weights"
          : undefined;
  if (forCpu !== undefined && forGpu !== undefined) {
    throw new InvalidArgumentError(
      `${forCpu} is for the CPU device and ${forGpu} for a GPU. Leave one of them out.`,
    );
  }
  if (device === "cuda" && forCpu !== undefined) {
    throw new InvalidArgumentError(
      `${forCpu} is for the CPU device. Drop ${forCpu}, or drop --device cuda.`,
    );
  }
  if (device === "cpu" && forGpu !== undefined) {
    throw new InvalidArgumentError(`${forGpu} is for a GPU. Drop ${forGpu}, or drop --device cpu.`);
  }
  const implied = forCpu !== undefined ? "cpu" : gpu !== undefined ? "cuda" : "auto";
  const opened = await openDevice({
    kind: device === "auto" ? implied : device,
    ...(threads !== undefined && { threads }),
    ...(gpu !== undefined && { ordinal: gpu }),
    ...(float32 !== undefined && { float32 }),
  });
  const { packsWeights } = opened.properties;
  if (!packWeights || packsWeights.available) return opened;
  await opened.close();
  throw new DeviceUnavailableError(
    `Weights cannot be packed here: ${packsWeights.reason} Drop --pack-weights.`,
  );
}

export async function summaryOf({ properties }: Device): Promise<DeviceSummary> {
  const { kind, name, computeUnits, memoryBytes, cacheBytes, features } = properties;
  const driver = kind === "cuda" ? await driverVersion() : undefined;
  return {
    kind,
    name,
    computeUnits,
    memoryBytes,
    cacheBytes,
    features,
    ...(driver !== undefined && { driver }),
  };
}

/** Only NVML tells the version that people know a driver by; where there is none it is not worth a failure. */
async function driverVersion(): Promise<string | undefined> {
  // Imported when there is a GPU: the other device needs no native library.
  const { NvmlSession } = await import("../execution/cuda/nvml/session.ts");
  try {
    const session = await NvmlSession.open();
    try {
      return await session.use((nvml) => nvml.driverVersion());
    } finally {
      session.close();
    }
  } catch {
    return undefined;
  }
}
