/** What the driver says of a GPU, asked once when a device is opened. Needs no context. */

import type { Checked } from "./checked.ts";
import type { DeviceFacts } from "./driver.ts";

/** CUdevice_attribute */
const ATTRIBUTE = {
  multiprocessors: 16,
  memoryClockKHz: 36,
  memoryBusBits: 37,
  l2Bytes: 38,
  capabilityMajor: 75,
  capabilityMinor: 76,
  pageableMemoryAccess: 88,
  sharedPerBlockOptin: 97,
  maxPersistingL2Bytes: 108,
  maxWindowBytes: 109,
} as const;

/** Memory of a GPU transfers at both edges of its clock. */
const TRANSFERS_A_CLOCK = 2;

const UUID_BYTES = 16;
/** More than any name of a device that the driver gives. */
const NAME_BYTES = 256;

export function readDeviceFacts(checked: Checked, ordinal: number): DeviceFacts {
  const device = checked.device(ordinal);
  const attribute = (which: number): number => {
    const code = checked.cu.cuDeviceGetAttribute(checked.first, which, device);
    checked.check("cuDeviceGetAttribute", code);
    return checked.int32(0);
  };
  return {
    ordinal,
    name: deviceName(checked, device),
    uuid: deviceUuid(checked, device),
    memoryBytes: totalMemory(checked, device),
    memoryBytesPerSecond:
      TRANSFERS_A_CLOCK *
      attribute(ATTRIBUTE.memoryClockKHz) *
      1000 *
      (attribute(ATTRIBUTE.memoryBusBits) / 8),
    multiprocessors: attribute(ATTRIBUTE.multiprocessors),
    capability: [attribute(ATTRIBUTE.capabilityMajor), attribute(ATTRIBUTE.capabilityMinor)],
    l2Bytes: attribute(ATTRIBUTE.l2Bytes),
    maxPersistingL2Bytes: attribute(ATTRIBUTE.maxPersistingL2Bytes),
    maxWindowBytes: attribute(ATTRIBUTE.maxWindowBytes),
    sharedPerBlockOptin: attribute(ATTRIBUTE.sharedPerBlockOptin),
    readsPageable: attribute(ATTRIBUTE.pageableMemoryAccess) === 1,
  };
}

function totalMemory(checked: Checked, device: number): number {
  checked.check("cuDeviceTotalMem_v2", checked.cu.cuDeviceTotalMem_v2(checked.first, device));
  return checked.size(0);
}

function deviceName(checked: Checked, device: number): string {
  const name = Buffer.alloc(NAME_BYTES);
  checked.check("cuDeviceGetName", checked.cu.cuDeviceGetName(name, NAME_BYTES, device));
  return name.toString("latin1", 0, name.indexOf(0));
}

/** As NVML and nvidia-smi write it. */
function deviceUuid(checked: Checked, device: number): string {
  const bytes = Buffer.alloc(UUID_BYTES);
  checked.check("cuDeviceGetUuid_v2", checked.cu.cuDeviceGetUuid_v2(bytes, device));
  return `GPU-${bytes.toString("hex").replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-")}`;
}
