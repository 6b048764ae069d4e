/**
 * Shared libraries of the system, opened at run time: `libcuda.so.1`, NVML.
 *
 * Nexus compiles nothing on the user's machine and runs no install script, so C
 * is called through koffi's prebuilt binary for the platform, an optional
 * dependency. This file is all that Nexus knows of koffi: how it is found, the
 * few of its calls in use, and the types of C that pass through them. A machine
 * without the binary or without the library is an ordinary machine, so both are
 * values with a reason and not exceptions.
 *
 * It knows no function of any library: those tables stand with their users.
 */

import { createRequire } from "node:module";

/** C types of arguments. Pointers are addresses or memory of JavaScript's own, valid for the call only. */
export type NativeType =
  | "void *"
  | "str"
  | "int32_t"
  | "uint32_t"
  | "uint64_t"
  | "size_t"
  | "uint8_t"
  | "double";

export type Pointer = bigint | ArrayBufferView | null;

type Argument<T extends NativeType> = T extends "void *"
  ? Pointer
  : T extends "str"
    ? string
    : number;

type Arguments<S extends readonly NativeType[]> = {
  -readonly [I in keyof S]: Argument<S[I]>;
};

/** A C function that returns a status of type int. */
export interface NativeFunction<S extends readonly NativeType[]> {
  (...args: Arguments<S>): number;
  /**
   * The same on a thread of libuv's pool, for what takes milliseconds. Memory passed must live until
   * the callback, and the function must not depend on the calling thread (a current context).
   */
  async(...args: [...Arguments<S>, (error: Error | null, status: number) => void]): void;
}

/** Functions by name, with the types of their arguments. */
export type SignatureTable = Readonly<Record<string, readonly NativeType[]>>;

export type NativeFunctions<T extends SignatureTable> = {
  readonly [Name in keyof T]: NativeFunction<T[Name]>;
};

/** Memory outside the JavaScript heap, at an address that does not change. */
export interface NativeBlock {
  readonly address: bigint;
  readonly bytes: ArrayBuffer;
}

export interface NativeLibrary {
  /** The name it was opened by. */
  readonly path: string;
  /** Null where the library has no such function. */
  find<const S extends readonly NativeType[]>(name: string, types: S): NativeFunction<S> | null;
  /** Zeroed; for the lifetime of the process. */
  allocate(bytes: number): NativeBlock;
  /** Memory that somebody else owns; unsafe to touch once they have freed it. */
  view(address: bigint, bytes: number): ArrayBuffer;
  /** The pointer that stands at `address`. */
  addressAt(address: bigint): bigint;
  /** The C string whose address stands at `address`. */
  stringAt(address: bigint): string | null;
}

export type Opened = { readonly library: NativeLibrary } | { readonly reason: string };

/** What is used of koffi, by its own names. */
interface Koffi {
  load(path: string): KoffiLibrary;
  alloc(type: "uint8_t", count: number): bigint;
  view(address: bigint, bytes: number): ArrayBuffer;
  decode(address: bigint, type: "str"): string | null;
  decode(address: bigint, type: "uintptr_t"): bigint | number;
}

interface KoffiLibrary {
  func<S extends readonly NativeType[]>(name: string, result: "int", types: S): NativeFunction<S>;
}

/** Platforms with a binary in `optionalDependencies`, by `process.platform` and `process.arch`. */
const PLATFORMS: readonly string[] = ["linux-x64", "linux-arm64"];

const MISSING_FILE = "No such file or directory";

/**
 * Whether the dynamic linker says that the library itself is not there, and not another
 * that it depends on: glibc names only the other (koffi takes its own name off), musl each.
 */
function isMissing(message: string, path: string): boolean {
  return (
    message.endsWith(`library: cannot open shared object file: ${MISSING_FILE}`) ||
    message.endsWith(`library ${path}: ${MISSING_FILE}`)
  );
}

/** Opening twice would bind two copies of every function; libraries are never closed either. */
const opened = new Map<string, NativeLibrary>();

/**
 * Opens a library, or tells why it cannot.
 *
 * @param what the library's name for people, e.g. "the NVIDIA driver"
 * @param paths names for the dynamic linker or absolute paths, tried in order
 */
export function openLibrary(what: string, paths: readonly string[]): Opened {
  for (const path of paths) {
    const library = opened.get(path);
    if (library !== undefined) return { library };
  }
  const koffi = loadKoffi(process.platform, process.arch);
  if (typeof koffi === "string") return { reason: koffi };
  for (const path of paths) {
    try {
      const library = new KoffiNativeLibrary(koffi, path);
      opened.set(path, library);
      return { library };
    } catch (error) {
      // A library that is there but cannot be loaded is what there is to tell; the next name would hide it.
      const message = error instanceof Error ? error.message : String(error);
      if (!isMissing(message, path)) {
        return { reason: `${path} (${what}) could not be loaded: ${message}` };
      }
    }
  }
  return { reason: `${paths[0]} (${what}) was not found (looked for ${paths.join(", ")})` };
}

/** koffi, or why it is not there. The platform is a parameter so that others can be tried. */
export function loadKoffi(platform: string, arch: string): Koffi | string {
  const target = `${platform}-${arch}`;
  if (!PLATFORMS.includes(target)) {
    return `there is no prebuilt FFI for ${target} (there is for ${PLATFORMS.join(", ")})`;
  }
  const name = `@koromix/koffi-${target}`;
  try {
    return createRequire(import.meta.url)(name) as Koffi;
  } catch (error) {
    const message = error instanceof Error ? error.message.split("\n", 1)[0] : String(error);
    return `the prebuilt FFI ${name} could not be loaded (${message}). Install without --omit=optional.`;
  }
}

/** Binds every function of a table, or names those that the library lacks. */
export function bindAll<const T extends SignatureTable>(
  library: NativeLibrary,
  table: T,
): { readonly functions: NativeFunctions<T> } | { readonly missing: readonly string[] } {
  const found: [string, NativeFunction<readonly NativeType[]>][] = [];
  const missing: string[] = [];
  for (const [name, types] of Object.entries(table)) {
    const fn = library.find(name, types);
    if (fn === null) missing.push(name);
    else found.push([name, fn]);
  }
  if (missing.length > 0) return { missing };
  return { functions: Object.fromEntries(found) as NativeFunctions<T> };
}

class KoffiNativeLibrary implements NativeLibrary {
  readonly path: string;
  readonly #koffi: Koffi;
  readonly #library: KoffiLibrary;

  constructor(koffi: Koffi, path: string) {
    this.path = path;
    this.#koffi = koffi;
    this.#library = koffi.load(path);
  }

  find<const S extends readonly NativeType[]>(name: string, types: S): NativeFunction<S> | null {
    try {
      return this.#library.func(name, "int", types);
    } catch (error) {
      if (error instanceof Error && error.message.startsWith("Cannot find function")) return null;
      throw error;
    }
  }

  allocate(bytes: number): NativeBlock {
    const address = this.#koffi.alloc("uint8_t", bytes);
    return { address, bytes: this.#koffi.view(address, bytes) };
  }

  view(address: bigint, bytes: number): ArrayBuffer {
    return this.#koffi.view(address, bytes);
  }

  addressAt(address: bigint): bigint {
    return BigInt(this.#koffi.decode(address, "uintptr_t"));
  }

  stringAt(address: bigint): string | null {
    return this.#koffi.decode(address, "str");
  }
}
