/**
 * What the trial of the GPU has shown, as checks: the FFI, the driver's two
 * libraries, the kernels that fit, how the GPU can be divided, and what it tells of
 * itself.
 */

import type { GpuTelemetry } from "../cuda/nvml/gpu.ts";
import type { MigInstance } from "../device.ts";
import type { Check } from "./check.ts";
import type { CudaGpu, Finding, GpuFindings, ManagedGpu } from "./gpu-findings.ts";

const MIB = 2 ** 20;
const GIB = 2 ** 30;

/** What Nexus does with a part of CUDA where the CUDA device does not open. */
export const NOT_USED = "the CPU device instead";

const DRIVER_REMEDY =
  "Install NVIDIA's driver, 525 or later; in a container start it with --gpus all and NVIDIA_DRIVER_CAPABILITIES=compute,utility.";
const TRIAL_REMEDY =
  "Look at nvidia-smi and the kernel log (dmesg) for what is wrong with the driver, and reinstall it if need be.";
const NO_GPU_REMEDY = "None is needed without an NVIDIA GPU.";

/** Why there is no CUDA device, for the end of "no CUDA because ..."; null where there is one, whatever else is wrong. */
export function whyNoCuda(findings: GpuFindings): string | null {
  const { ffi, driver, kernels, device, stopped } = findings;
  if (device?.ok) return null;
  // The device repeats what its parts say, with more words around it.
  const failed = [ffi, driver, kernels, device].find((finding) => finding?.ok === false);
  if (failed?.ok === false) return withoutStop(failed.reason);
  return stopped === undefined
    ? "the GPU was not tried out"
    : `the process that tried it ${stopped.how} while ${stopped.during}`;
}

/**
 * @param expected whether the machine shows signs of an NVIDIA GPU, or is to have one
 */
export function checkCuda(findings: GpuFindings, expected: boolean): Check[] {
  const parts = [
    checkLibrary(findings, expected),
    checkKernels(findings, expected),
    checkGreenContexts(findings, expected),
    checkNvml(findings, expected),
    checkMig(findings, expected),
  ];
  const works = whyNoCuda(findings) === null;
  return [
    checkFfi(findings, expected),
    // A part that works is of no use where another does not.
    ...parts.map((part) => (works || isNotThere(part) ? part : { ...part, use: NOT_USED })),
  ];
}

/** `NVIDIA H200, compute capability 9.0, 132 multiprocessors, 139.8 GiB, 50 MiB of L2` */
export function describeGpu(gpu: CudaGpu): string {
  return [
    gpu.name,
    `compute capability ${gpu.capability.join(".")}`,
    `${gpu.multiprocessors} multiprocessors`,
    `${(gpu.memoryBytes / GIB).toFixed(1)} GiB`,
    `${Math.round(gpu.l2Bytes / MIB)} MiB of L2`,
  ].join(", ");
}

function checkFfi({ ffi, stopped }: GpuFindings, expected: boolean): Check {
  const name = "native calls";
  if (ffi?.ok) {
    return { name, status: "ok", found: `koffi ${ffi.version}`, use: "calls NVIDIA's libraries" };
  }
  return {
    name,
    status: "missing",
    found: whyNot(ffi, stopped),
    use: NOT_USED,
    remedy:
      ffi !== undefined
        ? "Run on Linux, x64 or arm64, and install with optional dependencies."
        : expected
          ? TRIAL_REMEDY
          : NO_GPU_REMEDY,
  };
}

function checkLibrary({ driver, ffi, stopped }: GpuFindings, expected: boolean): Check {
  const name = "CUDA library";
  if (driver?.ok) {
    const version = `${Math.floor(driver.version / 1000)}.${Math.floor((driver.version % 1000) / 10)}`;
    return { name, status: "ok", found: `CUDA ${version}`, use: "the CUDA device" };
  }
  return {
    name,
    status: missingIf(expected),
    found: ffi?.ok === false ? "not tried: there are no native calls" : whyNot(driver, stopped),
    use: NOT_USED,
    remedy: expected ? (driver === undefined ? TRIAL_REMEDY : DRIVER_REMEDY) : NO_GPU_REMEDY,
  };
}

function checkKernels({ driver, kernels, device, stopped }: GpuFindings, expected: boolean): Check {
  const name = "CUDA kernels";
  if (kernels?.ok) {
    const { architecture, loaded } = kernels;
    return {
      name,
      status: "ok",
      found:
        architecture === "ptx"
          ? "PTX, which the driver compiles when a kernel is first used"
          : `${architecture} cubins, all ${loaded} load`,
      use: "the CUDA device",
    };
  }
  if (!driver?.ok) return afterLibrary(name, expected);
  return {
    name,
    status: device?.ok ? "limited" : "missing",
    found: whyNot(kernels, stopped),
    use: device?.ok ? "the CUDA device, until a step needs what does not load" : NOT_USED,
    remedy:
      kernels === undefined
        ? TRIAL_REMEDY
        : "The kernels need compute capability 8.0 or later and, for GPUs newer than they are, a driver that compiles their PTX: update the driver, or install the package again.",
  };
}

function checkGreenContexts(findings: GpuFindings, expected: boolean): Check {
  const name = "green contexts";
  const { driver, greenContexts, stopped } = findings;
  if (greenContexts?.ok) {
    return {
      name,
      status: "ok",
      found: "the driver divides multiprocessors",
      use: "slices on multiprocessors of their own (partitioned)",
    };
  }
  if (!driver?.ok) return { ...afterLibrary(name, expected), use: "slices share the device" };
  return {
    name,
    status: "missing",
    found: whyNot(greenContexts, stopped),
    use: "slices share the multiprocessors",
    remedy:
      greenContexts === undefined
        ? TRIAL_REMEDY
        : "Update NVIDIA's driver to 555 (CUDA 12.5) or later.",
  };
}

function checkNvml({ nvml, ffi, stopped }: GpuFindings, expected: boolean): Check {
  const name = "NVML";
  if (!nvml?.ok) {
    return {
      name,
      status: missingIf(expected),
      found: ffi?.ok === false ? "not tried: there are no native calls" : whyNot(nvml, stopped),
      use: "no energy, power or MIG instances of the GPU",
      remedy: expected ? (nvml === undefined ? TRIAL_REMEDY : DRIVER_REMEDY) : NO_GPU_REMEDY,
    };
  }
  const found = [nvml.version, ...nvml.gpus.map(describeTelemetry)].join("; ");
  if (nvml.gpus.some(({ telemetry }) => telemetry.joules === null)) {
    return {
      name,
      status: "limited",
      found,
      use: "power; energy is reported as unavailable",
      remedy: "Energy takes a GPU that counts it, Volta or later.",
    };
  }
  return { name, status: "ok", found, use: "energy of the GPU in joules, from 1 s on" };
}

function checkMig({ nvml }: GpuFindings, expected: boolean): Check {
  const name = "MIG";
  if (!nvml?.ok || nvml.gpus.length === 0) {
    return {
      name,
      status: missingIf(expected),
      found: nvml?.ok ? "NVML lists no GPU" : "only NVML can tell",
      use: "slice F is absent",
      remedy: expected ? "See NVML." : "Takes a GPU with MIG, such as A100, H100 or H200.",
    };
  }
  const instances = nvml.gpus.flatMap(({ mig }) => mig.instances);
  if (instances.length > 0) {
    return {
      name,
      status: "ok",
      found: `${instances.length === 1 ? "1 instance" : `${instances.length} instances`}: ${instances.map(describeInstance).join(", ")}`,
      use: "slice F, a worker process for each instance",
    };
  }
  return {
    name,
    status: "absent",
    found: nvml.gpus.map(({ mig }) => mig.reason).join(" "),
    use: "slice F is absent",
    remedy: "None is needed: slices share a GPU without MIG.",
  };
}

/** What belongs to a GPU is missed only where there is one, or has to be. */
export function missingIf(expected: boolean): Check["status"] {
  return expected ? "missing" : "absent";
}

function isNotThere({ status }: Check): boolean {
  return status === "missing" || status === "absent";
}

/** Where it is the library that is missing. */
function afterLibrary(name: string, expected: boolean): Check {
  return {
    name,
    status: missingIf(expected),
    found: "not tried: the CUDA library does not work",
    use: NOT_USED,
    remedy: expected ? "See CUDA library." : NO_GPU_REMEDY,
  };
}

function whyNot(finding: Finding<object> | undefined, stopped: GpuFindings["stopped"]): string {
  if (finding?.ok === false) return withoutStop(finding.reason);
  if (stopped === undefined) return "not tried";
  return `the process that tried it ${stopped.how} while ${stopped.during}`;
}

/** Reasons of some parts are sentences, of others the ends of sentences. */
function withoutStop(reason: string): string {
  return reason.replace(/\.$/, "");
}

/** `GPU 0 draws 75 W of 700 W at 31 C, 1980 MHz, counter at 123456 J` */
function describeTelemetry({ index, telemetry }: ManagedGpu): string {
  const { watts, limitWatts, celsius, smMegahertz, joules }: GpuTelemetry = telemetry;
  const limit = limitWatts === null ? "" : ` of ${Math.round(limitWatts)} W`;
  const readings = [
    watts === null ? "tells no power" : `draws ${Math.round(watts)} W${limit}`,
    celsius === null ? "" : `${celsius} C`,
    smMegahertz === null ? "" : `${smMegahertz} MHz`,
    joules === null ? "has no energy counter" : `energy counter at ${Math.round(joules)} J`,
  ];
  return `GPU ${index} ${readings.filter((reading) => reading !== "").join(", ")}`;
}

function describeInstance({ profile, uuid, gpu, computeUnits }: MigInstance): string {
  const units = computeUnits === null ? "" : `, ${computeUnits} multiprocessors`;
  return `${profile} on GPU ${gpu} (${uuid}${units})`;
}
