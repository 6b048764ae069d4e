/**
 * Which NVIDIA GPUs, driver and libraries a Linux machine has, told from the
 * files that the driver leaves in /proc, /dev and the library folders. No library
 * is loaded, so a broken driver cannot take the probe down with it; the price is
 * that "found" means that the file is there, not that a context can be made.
 *
 * This build has no CUDA device. Whatever is found here, it runs on the CPU, and
 * every check says so.
 */

import { join } from "node:path";
import type { Check } from "./check.ts";
import { type Host, isReadable, listMatching, readText } from "./host.ts";

const DRIVER_FOLDER = "/proc/driver/nvidia";

/** Where distributions, container runtimes and WSL put the driver's libraries. */
const LIBRARY_FOLDERS = [
  "/usr/lib/x86_64-linux-gnu",
  "/usr/lib/aarch64-linux-gnu",
  "/usr/lib64",
  "/usr/lib",
  "/usr/local/nvidia/lib64",
  "/usr/lib/wsl/lib",
  "/run/opengl-driver/lib",
];

const NOT_USED = "nothing: this build has no CUDA device and runs on the CPU";

/** All that is told about NVIDIA GPUs, in the order in which one builds on the other. */
export function checkGpu(host: Host): Check[] {
  const machine = surveyGpu(host);
  return [
    checkDevices(host, machine),
    checkDriver(host, machine),
    checkLibrary(host, machine, "CUDA library", "libcuda.so.1"),
    checkLibrary(host, machine, "NVML", "libnvidia-ml.so.1"),
    checkMig(host, machine),
    checkVisibility(host),
  ];
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

function checkDevices(host: Host, { models, devices, onBus }: GpuSurvey): Check {
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
      status: "missing",
      found,
      use: "the CPU instead",
      remedy: `None is needed. If there is a GPU outside of this container, start the container with "--gpus all".`,
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
  return { name, status: "limited", found, use: NOT_USED };
}

function checkDriver(host: Host, { driverVersion, present }: GpuSurvey): Check {
  const name = "GPU driver";
  if (driverVersion !== null) {
    return { name, status: "ok", found: driverVersion, use: NOT_USED };
  }
  return {
    name,
    status: "missing",
    found: host.platform === "linux" ? `no ${DRIVER_FOLDER}/version` : "looked for on Linux only",
    use: "the CPU instead",
    remedy: present ? "Install NVIDIA's driver." : "None is needed without a GPU.",
  };
}

function checkLibrary(host: Host, { present }: GpuSurvey, name: string, file: string): Check {
  const searched = [
    ...(host.env["LD_LIBRARY_PATH"] ?? "").split(":").filter((folder) => folder.startsWith("/")),
    ...LIBRARY_FOLDERS,
  ];
  const folder = searched.find((candidate) => isReadable(host, join(candidate, file)));
  if (folder !== undefined) {
    return { name, status: "ok", found: join(folder, file), use: NOT_USED };
  }
  return {
    name,
    status: "missing",
    found: `no ${file} in the library folders or LD_LIBRARY_PATH`,
    use: "the CPU instead",
    remedy: present
      ? "Install the driver's libraries; for a container set NVIDIA_DRIVER_CAPABILITIES=compute,utility."
      : "Comes with NVIDIA's driver; not needed without a GPU.",
  };
}

function checkMig(host: Host, { driverVersion, present }: GpuSurvey): Check {
  const name = "MIG";
  const capabilities = join(DRIVER_FOLDER, "capabilities");
  const instances = listMatching(host, capabilities, /^gpu\d+$/).flatMap((gpu) =>
    listMatching(host, join(capabilities, gpu, "mig"), /^gi\d+$/),
  ).length;
  if (instances > 0) {
    return {
      name,
      status: "limited",
      found: `${instances} GPU instances`,
      use: "nothing: slice F is absent, because this build has no CUDA device",
    };
  }
  const absent = { name, status: "missing", use: "slice F is absent" } as const;
  if (driverVersion === null) {
    const remedy = present
      ? "Install NVIDIA's driver."
      : "Use a GPU that can be partitioned, such as A100, H100 or H200.";
    return { ...absent, found: "needs an NVIDIA driver, and there is none", remedy };
  }
  return {
    ...absent,
    found: "no GPU instance",
    remedy:
      "Where the GPU has MIG (A100, H100, H200), turn it on with sudo nvidia-smi -mig 1 and make instances with -cgi.",
  };
}

function checkVisibility(host: Host): Check {
  const name = "CUDA_VISIBLE_DEVICES";
  const value = host.env[name];
  const use = "nothing: the CPU device does not read it";
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
