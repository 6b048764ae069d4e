/**
 * Whether this Node.js can run the CPU kernels: its version, and the two levels
 * of WebAssembly SIMD they are built for. The levels are found out by offering
 * the engine modules of a single instruction each.
 */

import type { Check } from "./check.ts";
import type { Host } from "./host.ts";

/** As in package.json: the first Node 20 that may `require` an ES module. */
const OLDEST_NODE = [20, 19] as const;

/** A module with one function, of no parameters and a v128 result, that is only validated. */
function moduleOf(...body: number[]): Uint8Array<ArrayBuffer> {
  const locals = 0x00;
  const end = 0x0b;
  const code = [locals, ...body, end];
  return Uint8Array.of(
    ...[0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00], // "\0asm", version 1
    ...[0x01, 0x05, 0x01, 0x60, 0x00, 0x01, 0x7b], // one type: () -> v128
    ...[0x03, 0x02, 0x01, 0x00], // one function of type 0
    ...[0x0a, code.length + 2, 0x01, code.length, ...code],
  );
}

/** f32x4.splat(0) */
const ZEROS = [0x43, 0x00, 0x00, 0x00, 0x00, 0xfd, 0x13];
const SIMD_MODULE = moduleOf(...ZEROS);
/** f32x4.relaxed_madd of three zeros; its opcode 0x105 takes two bytes as a LEB128. */
const RELAXED_SIMD_MODULE = moduleOf(...ZEROS, ...ZEROS, ...ZEROS, 0xfd, 0x85, 0x02);

export function hasSimd(host: Host): boolean {
  return host.validatesWasm(SIMD_MODULE);
}

export function hasRelaxedSimd(host: Host): boolean {
  return host.validatesWasm(RELAXED_SIMD_MODULE);
}

export function checkNode(host: Host): Check {
  const oldest = OLDEST_NODE.join(".");
  const found = `${host.nodeVersion} on ${host.platform} ${host.arch}`;
  return isSupported(host.nodeVersion)
    ? { name: "Node.js", status: "ok", found, use: `supported: ${oldest} or later` }
    : {
        name: "Node.js",
        status: "limited",
        found,
        use: `not supported: Nexus needs ${oldest} or later`,
        remedy: "Install Node 24 from https://nodejs.org.",
      };
}

export function checkSimd(host: Host): Check {
  const name = "WebAssembly SIMD";
  return hasSimd(host)
    ? { name, status: "ok", found: "128-bit SIMD", use: "the CPU kernels" }
    : {
        name,
        status: "missing",
        found: "this Node.js refuses SIMD modules",
        use: "the CPU kernels cannot run without it",
        remedy: "Run on a CPU with SSE4.1 or NEON, and without --jitless.",
      };
}

export function checkRelaxedSimd(host: Host): Check {
  const name = "relaxed SIMD";
  return hasRelaxedSimd(host)
    ? {
        name,
        status: "ok",
        found: "fused multiply-add",
        use: "the faster build of the CPU kernels",
      }
    : {
        name,
        status: "missing",
        found: "this Node.js refuses relaxed SIMD modules",
        use: "the plain SIMD build of the CPU kernels, slower in large products",
        remedy: "Install Node 22 or later.",
      };
}

function isSupported(version: string): boolean {
  const [major = 0, minor = 0] = version.replace(/^v/, "").split(".").map(Number);
  const [oldestMajor, oldestMinor] = OLDEST_NODE;
  return major > oldestMajor || (major === oldestMajor && minor >= oldestMinor);
}
