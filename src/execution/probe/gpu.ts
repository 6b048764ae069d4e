/**
 * Which NVIDIA GPUs and which driver a Linux machine has, told from the files that
 * the driver leaves in /proc and /dev and from the PCI bus; and whether Nexus can
 * use them, which only trying tells (cuda.ts). The files say what to do where
 * trying fails: a GPU without a driver is another matter than none at all.
 */

import { join } from "node:path";
import type { Check } from "./check.ts";
import { checkCuda, describeGpu, missingIf, NOT_USED, whyNoCuda } from "./cuda.ts";
import type { CudaGpu, GpuFindings } from "./gpu-findings.ts";
import { type Host, isReadable, listMatching, readText } from "./host.ts";

const DRIVER_FOLDER = "/proc/driver/nvidia";

/**
 * All that is told about NVIDIA GPUs, in the order in which one builds on the other.
 *
 * @param wanted whether nothing else will do, so that a GPU is missed where there is none
 */
export function checkGpu(host: Host, findings: GpuFindings, wanted = false): Check[] {
  const machine = surveyGpu(host);
  const works = whyNoCuda(findings) === null;
  const expected = wanted || machine.present;
  const checks = [
    ...(findings.driver?.ok
      ? findings.driver.gpus.map((gpu, ordinal) => checkCudaGpu(gpu, ordinal, works))
      : [checkDevices(host, machine, wanted)]),
    checkDriver(host, machine, expected, works),
    ...checkCuda(findings, expected),
    checkVisibility(host, works || wanted),
  ];
  return wanted ? checks.map(withoutFallback) : checks;
}

/** No CPU device stands in for a GPU that was asked for. */
function withoutFallback(check: Check): Check {
  return check.use === NOT_USED ? { ...check, use: "nothing" } : check;
}

interface GpuSurvey {
  /** Model names, as the driver tells them. */
  readonly models: readonly string[];
  /** `/dev/nvidia0` and so on. */
  readonly devices: readonly string[];
  /** NVIDIA display or compute controllers on the PCI bus, driver or not. */
  readonly onBus: number;
  readonly driverVersion: string | null;
  readonly present: boolean;
}

function surveyGpu(host: Host): GpuSurvey {
  const gpus = join(DRIVER_FOLDER, "gpus");
  const models = listMatching(host, gpus, /./).map((address) => {
    const information = readText(host, join(gpus, address, "information")) ?? "";
    return /^Model:\s*(.+?)\s*$/m.exec(information)?.[1] ?? "NVIDIA GPU of unknown model";
  });
  const devices = listMatching(host, "/dev", /^nvidia\d+$/).map((node) => `/dev/${node}`);
  const bus = "/sys/bus/pci/devices";
  const onBus = listMatching(host, bus, /./).filter((address) => {
    const read = (file: string) => readText(host, join(bus, address, file)) ?? "";
    return read("vendor").startsWith("0x10de") && read("class").startsWith("0x03");
  }).length;
  const version = readText(host, join(DRIVER_FOLDER, "version")) ?? "";
  return {
    models,
    devices,
    onBus,
    driverVersion: /Kernel Module\b.*?\s(\d+(?:\.\d+)+)\s/.exec(version)?.[1] ?? null,
    present: models.length + devices.length + onBus > 0,
  };
}

/** @param works whether the CUDA device opens */
function checkCudaGpu(gpu: CudaGpu, ordinal: number, works: boolean): Check {
  const name = `GPU ${ordinal}`;
  const found = describeGpu(gpu);
  if (!works) {
    return { name, status: "limited", found, use: NOT_USED, remedy: "See what is missing below." };
  }
  return ordinal === 0
    ? { name, status: "ok", found, use: "the CUDA device" }
    : { name, status: "ok", found, use: `the CUDA device if it is opened with ordinal ${ordinal}` };
}

function checkDevices(host: Host, { models, devices, onBus }: GpuSurvey, wanted: boolean): Check {
  const name = "GPU";
  if (models.length === 0 && devices.length === 0) {
    if (onBus > 0) {
      return {
        name,
        status: "limited",
        found: `${onBus} NVIDIA on the PCI bus, without a driver`,
        use: NOT_USED,
        remedy: "Install NVIDIA's driver, or load it (sudo modprobe nvidia).",
      };
    }
    const found = host.platform === "linux" ? "no NVIDIA GPU" : "looked for on Linux only";
    return {
      name,
      status: missingIf(wanted),
      found,
      use: NOT_USED,
      remedy: `${wanted ? "CUDA takes one." : "None is needed."} If there is a GPU outside of this container, start the container with "--gpus all".`,
    };
  }
  const found = models.length > 0 ? countEqual(models) : `${devices.length} of unknown model`;
  if (devices.length === 0) {
    return {
      name,
      status: "limited",
      found: `${found}, without a device file`,
      use: NOT_USED,
      remedy:
        'Create /dev/nvidia0 (sudo nvidia-modprobe -u -c=0), or start the container with "--gpus all".',
    };
  }
  const locked = devices.find((device) => !isReadable(host, device));
  if (locked !== undefined) {
    return {
      name,
      status: "limited",
      found: `${found}, not readable by this user`,
      use: NOT_USED,
      remedy: `Let this user read and write ${locked}, usually by joining its group.`,
    };
  }
  const remedy = "The CUDA library does not get at it: see there.";
  return { name, status: "limited", found, use: NOT_USED, remedy };
}

function checkDriver(
  host: Host,
  { driverVersion }: GpuSurvey,
  expected: boolean,
  works: boolean,
): Check {
  const name = "GPU driver";
  if (driverVersion !== null) {
    return { name, status: "ok", found: driverVersion, use: works ? "the CUDA device" : NOT_USED };
  }
  // Windows' Linux has the GPU without a kernel module of its own.
  if (works) {
    return { name, status: "ok", found: "the host system's", use: "the CUDA device" };
  }
  return {
    name,
    status: missingIf(expected),
    found: host.platform === "linux" ? `no ${DRIVER_FOLDER}/version` : "looked for on Linux only",
    use: NOT_USED,
    remedy: expected ? "Install NVIDIA's driver." : "None is needed without a GPU.",
  };
}

function checkVisibility(host: Host, matters: boolean): Check {
  const name = "CUDA_VISIBLE_DEVICES";
  const value = host.env[name];
  const use = matters
    ? "says which GPUs there are, and which is the first"
    : "nothing: the CPU device does not read it";
  if (value === undefined) {
    return { name, status: "ok", found: "not set, so no GPU is hidden", use };
  }
  // CUDA stops at the first entry that is no device, and -1 never is one.
  if (value.trim() === "" || value.trim().startsWith("-")) {
    return {
      name,
      status: "limited",
      found: `"${value}", which hides every GPU`,
      use,
      remedy: "Unset it to make the GPUs visible.",
    };
  }
  return { name, status: "ok", found: `"${value}"`, use };
}

/** `["H200", "H200"]` as `2 x H200`. */
function countEqual(models: readonly string[]): string {
  return [...new Set(models)]
    .map((model) => {
      const count = models.filter((other) => other === model).length;
      return count === 1 ? model : `${count} x ${model}`;
    })
    .join(", ");
}
