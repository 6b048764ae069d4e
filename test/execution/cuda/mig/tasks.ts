/** What the tests of the pool have workers do. */

import type { Device } from "../../../../src/execution/device.ts";

export async function sum(device: Device, values: number[]) {
  using buffer = device.allocate(values.length * 4, "values");
  device.write(buffer, Float32Array.from(values));
  const back = new Float32Array(values.length);
  await device.read(buffer, back);
  return { sum: back.reduce((a, b) => a + b, 0), sees: process.env["CUDA_VISIBLE_DEVICES"] };
}

let calls = 0;
export function count(): number {
  return ++calls;
}

export function hold(device: Device, bytes: number): null {
  device.allocate(bytes, "held");
  return null;
}

export function fail(): never {
  throw new TypeError("no such luck");
}

export function tooMuch(device: Device): void {
  device.allocate(2 ** 40, "everything");
}

export function notJson(): unknown {
  return 1n;
}

export function die(_: Device, code: number): never {
  process.exit(code);
}

export function crash(): Promise<never> {
  process.kill(process.pid, "SIGSEGV");
  return new Promise(() => undefined);
}

export function hang(): never {
  for (;;);
}

export const notAFunction = 3;
