/**
 * The MIG instances of a GPU: parts of it with memory, cache and multiprocessors of
 * their own, which an administrator makes. Nexus only lists them; it never changes
 * a GPU's MIG mode and never makes or removes an instance, since both stop whatever
 * else uses the GPU.
 *
 * An instance is a CUDA device by itself, and a process sees one at most. So it is
 * no way to divide a device that is open: work runs on it in a process of its own
 * (pool.ts).
 */

import type { Availability, MigInstance } from "../../device.ts";
import type { Nvml } from "../nvml/checked.ts";
import { orNull } from "../nvml/errors.ts";
import type { NvmlLibrary } from "../nvml/ffi.ts";
import type { NvmlGpu } from "../nvml/gpu.ts";
import { NvmlSession } from "../nvml/session.ts";

export interface MigSurvey {
  /** `"none"`: this GPU cannot be divided. */
  readonly mode: "none" | "off" | "on";
  /** Set where the mode will be another after the GPU's next reset. */
  readonly pendingMode?: "off" | "on";
  readonly instances: readonly MigInstance[];
  /** Whether there is an instance. */
  readonly availability: Availability;
}

const BYTES_PER_MEBIBYTE = 2 ** 20;

/** @throws NvmlError (as a rejection) if NVML fails at more than not having MIG */
export function surveyMig(gpu: NvmlGpu): Promise<MigSurvey> {
  return gpu.use(async (nvml, device) => {
    const who = `GPU ${gpu.index} (${gpu.name})`;
    const mode = await orNull(nvml.migMode(device));
    if (mode === null) return without("none", `${who} has no MIG.`);
    const pending = mode.pending === mode.current ? {} : { pendingMode: onOff(mode.pending) };
    if (!mode.current) {
      const remedy = mode.pending
        ? "it is turned on when the GPU is reset next"
        : `an administrator turns it on with nvidia-smi -i ${gpu.index} -mig 1`;
      return { ...without("off", `MIG is off on ${who}; ${remedy}.`), ...pending };
    }
    const instances = await instancesOf(nvml, device, gpu.index);
    if (instances.length === 0) {
      const reason = `MIG is on but ${who} has no instance that this process may use; an administrator makes one with nvidia-smi mig -i ${gpu.index} -cgi <profile> -C.`;
      return { ...without("on", reason), ...pending };
    }
    return { mode: "on", ...pending, instances, availability: { available: true } };
  });
}

/** What a CUDA device says of MIG. */
export type MigOfDevice = Pick<MigSurvey, "availability" | "instances">;

/**
 * The instances of a CUDA device's GPU. Never fails: what keeps NVML from telling is the reason for there being none.
 *
 * @param uuid of the GPU or of a MIG instance of it, as the CUDA driver has it
 */
export async function migOfDevice(uuid: string, library?: NvmlLibrary): Promise<MigOfDevice> {
  try {
    using session = await NvmlSession.open(library);
    const { gpu } = await session.locate(uuid);
    const { availability, instances } = await surveyMig(gpu);
    return { availability, instances };
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    const reason = `MIG instances are listed by NVML. ${why}`;
    return { availability: { available: false, reason }, instances: [] };
  }
}

/** MIG instances, and for every GPU without any why it has none. */
export interface MigListing {
  readonly instances: readonly MigInstance[];
  readonly reasons: readonly string[];
}

/** All instances of all GPUs that this process may see. @throws DeviceUnavailableError (as a rejection) if there is no NVML, NvmlError if it fails */
export function listMigInstances(): Promise<MigListing> {
  return listInstances();
}

/** @internal As listMigInstances(), by an NVML that is not the machine's. */
export async function listInstances(library?: NvmlLibrary): Promise<MigListing> {
  using session = await NvmlSession.open(library);
  const instances: MigInstance[] = [];
  const reasons: string[] = [];
  for (const gpu of await session.gpus()) {
    const survey = await surveyMig(gpu);
    instances.push(...survey.instances);
    if (!survey.availability.available) reasons.push(survey.availability.reason);
  }
  return { instances, reasons };
}

async function instancesOf(nvml: Nvml, device: bigint, gpu: number): Promise<MigInstance[]> {
  const instances: MigInstance[] = [];
  const places = await nvml.migPlaces(device);
  for (let place = 0; place < places; place++) {
    const instance = await nvml.migInstance(device, place);
    if (instance === null) continue;
    const attributes = await orNull(nvml.attributes(instance));
    const name = await nvml.name(instance);
    instances.push({
      uuid: await nvml.uuid(instance),
      gpu,
      gpuInstance: await nvml.gpuInstanceId(instance),
      computeInstance: await nvml.computeInstanceId(instance),
      // "NVIDIA H200 MIG 1g.18gb", or "MIG 1c.3g.71gb" where the compute instance is a part of its GPU instance.
      profile: /\bMIG (\S+)$/.exec(name)?.[1] ?? name,
      computeUnits: attributes?.multiprocessors ?? null,
      memoryBytes: attributes === null ? null : attributes.memoryMebibytes * BYTES_PER_MEBIBYTE,
    });
  }
  return instances;
}

function without(mode: MigSurvey["mode"], reason: string): MigSurvey {
  return { mode, instances: [], availability: { available: false, reason } };
}

function onOff(on: boolean): "on" | "off" {
  return on ? "on" : "off";
}
