/**
 * The process that tries the GPU out, from the FFI to an open device, and writes
 * what it does and finds as lines of JSON. A driver that is broken may end this
 * process or never return; what was written until then stands.
 *
 * Nothing is imported before it is tried, so that even a module that cannot be
 * loaded becomes a finding. Nothing is closed: the end of the process does that, and
 * closing a broken driver is one more way to hang.
 */

import { writeSync } from "node:fs";
import type { Driver } from "../cuda/driver/driver.ts";
import type { CudaGpu, Finding, GpuFindings, ManagedGpu, ProbeLine } from "./gpu-findings.ts";

const STDOUT = 1;

/** Synchronous, so that a line is out before the next call can end the process. */
function say(line: ProbeLine): void {
  writeSync(STDOUT, `${JSON.stringify(line)}\n`);
}

async function attempt<T extends object>(
  during: string,
  key: keyof GpuFindings,
  look: () => Promise<T>,
): Promise<void> {
  say({ during });
  let found: Finding<T>;
  try {
    found = { ok: true, ...(await look()) };
  } catch (error) {
    found = { ok: false, reason: error instanceof Error ? error.message : String(error) };
  }
  say({ found: { [key]: found } });
}

async function lookAtFfi() {
  const { loadKoffi } = await import("../native/library.ts");
  const koffi = loadKoffi(process.platform, process.arch);
  if (typeof koffi === "string") throw new Error(koffi);
  const { version } = koffi as { version?: string };
  return { version: version ?? "of unknown version" };
}

async function lookAtNvml() {
  const { NvmlSession } = await import("../cuda/nvml/session.ts");
  const { surveyMig } = await import("../cuda/mig/instances.ts");
  const session = await NvmlSession.open();
  const version = await session.use((nvml) => nvml.nvmlVersion());
  const gpus: ManagedGpu[] = [];
  for (const gpu of await session.gpus()) {
    const { instances, availability } = await surveyMig(gpu);
    const reason = availability.available ? null : availability.reason;
    const { index, name } = gpu;
    gpus.push({ index, name, telemetry: await gpu.telemetry(), mig: { instances, reason } });
  }
  return { version, gpus };
}

async function startDriver() {
  const { openDriver } = await import("../cuda/driver/native-driver.ts");
  const opened = openDriver();
  if ("reason" in opened) throw new Error(opened.reason);
  const { driver } = opened;
  const gpus = Array.from({ length: driver.deviceCount() }, (_, ordinal): CudaGpu => {
    const { name, capability, multiprocessors, memoryBytes, l2Bytes } = driver.deviceFacts(ordinal);
    return { name, capability, multiprocessors, memoryBytes, l2Bytes };
  });
  if (gpus.length === 0) throw new Error("the driver has no GPU");
  usable = driver;
  return { version: driver.version, gpus };
}

async function lookAtGreenContexts(driver: Driver) {
  const reason = driver.partitionsUnavailable();
  if (reason !== null) throw new Error(reason);
  return {};
}

async function lookAtKernels(driver: Driver) {
  const { KernelSet } = await import("../cuda/bundle/kernel-set.ts");
  driver.retainContext(0);
  const set = await KernelSet.open(driver, driver.deviceFacts(0));
  const { architecture } = set;
  set.tryOut();
  // Compiling all of the PTX takes minutes.
  if (architecture === "ptx") return { architecture, loaded: 1 };
  const kernels = set.all({});
  for (const kernel of kernels) void kernel.fn;
  return { architecture, loaded: kernels.length };
}

async function openCuda() {
  const { openDevice } = await import("../open.ts");
  await openDevice({ kind: "cuda" });
  return {};
}

let usable: Driver | undefined;
await attempt("loading the FFI", "ffi", lookAtFfi);
await attempt("asking NVML", "nvml", lookAtNvml);
await attempt("starting the CUDA driver", "driver", startDriver);
if (usable !== undefined) {
  const driver = usable;
  await attempt("asking for green contexts", "greenContexts", () => lookAtGreenContexts(driver));
  // Before all kernels are loaded, which opening does not do: one that crashes the driver is no reason against opening.
  await attempt("opening the CUDA device", "device", openCuda);
  await attempt("loading the CUDA kernels", "kernels", () => lookAtKernels(driver));
}
say({ during: "ending" });
// Closes what is still open, and does not wait for it.
process.exit(0);
