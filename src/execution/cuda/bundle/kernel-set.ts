/**
 * The kernels of one architecture: which images fit this GPU, and each kernel's
 * function, loaded when it is first asked for.
 *
 * An image is trusted only after three checks: its bytes have the hash in the
 * manifest, the driver takes it, and its parameters are, in number and size, those
 * that the launcher will write (as far as the driver can tell). What fails names the
 * kernel and the file.
 *
 * Which kernel suits an operator is not decided here; see operators/choice.ts.
 */

import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { brotliDecompress } from "node:zlib";
import {
  DeviceFailedError,
  DeviceUnavailableError,
  DisposedError,
  InvalidArgumentError,
} from "../../../errors.ts";
import type { DeviceFacts, Driver } from "../driver/driver.ts";
import { release } from "../driver/errors.ts";
import {
  isPointer,
  type KernelEntry,
  type Manifest,
  parameterBytes,
  parseManifest,
  REINSTALL,
} from "./manifest.ts";

/** kernels/bundle of the package, seen from the compiled form of this file. */
const PACKAGED = new URL("../../../../../kernels/bundle/", import.meta.url);

/** Cubins made for exactly one architecture, by compute capability. */
const OWN_CODE: Readonly<Record<string, string>> = {
  "9.0": "sm_90a",
  "10.0": "sm_100a",
  "12.0": "sm_120a",
};
/** Cubins for all of compute capability 8. */
const AMPERE = { major: 8, archive: "sm_80" } as const;
/** For the driver to finish on everything else from AMPERE on. */
const PTX = "ptx";

/** A block may have this much dynamic shared memory without asking for it (CUDA C++ programming guide). */
const SHARED_WITHOUT_ASKING = 48 * 1024;

/** From this driver on a capture takes launches that may begin before the one in front is done. */
const DEPENDENT_LAUNCHES_SINCE = 12030;

/** A small kernel, of a few KiB, on every architecture; not one of those that are looked for among the loaded ones to see what was launched. */
const SMALL: Selects = { operator: "tidy" };

const decompress = promisify(brotliDecompress);

/** Values for the fields of `selects`; a field that is a range takes the numbers in it. */
export type Selects = Readonly<Record<string, string | number | boolean>>;

/** @throws DeviceUnavailableError below compute capability 8.0 */
export function archiveFor({ name, capability }: DeviceFacts): string {
  const [major, minor] = capability;
  if (major < AMPERE.major) {
    throw new DeviceUnavailableError(
      `${name} has compute capability ${major}.${minor}. The kernels need 8.0 (Ampere) or later.`,
    );
  }
  if (major === AMPERE.major) return AMPERE.archive;
  return OWN_CODE[`${major}.${minor}`] ?? PTX;
}

/** A kernel of the set. */
export interface Kernel {
  readonly entry: KernelEntry;
  /** Its function; the first use loads the image. @throws DeviceUnavailableError if the image is not what it should be */
  readonly fn: bigint;
}

export class KernelSet implements Disposable {
  readonly manifest: Manifest;
  /** Which archive is in use: `sm_90a`, ..., or `ptx`. */
  readonly architecture: string;
  readonly #driver: Driver;
  readonly #file: string;
  readonly #archive: Uint8Array;
  /** By operator, which most searches name; in the manifest's order. */
  readonly #kernels = new Map<unknown, LazyKernel[]>();
  readonly #modules: bigint[] = [];
  #closed = false;

  /**
   * Reads the manifest and the archive that fits the device; loads no kernel yet.
   *
   * @throws DeviceUnavailableError if the GPU is too old or the bundle damaged
   */
  static async open(driver: Driver, facts: DeviceFacts, directory = PACKAGED): Promise<KernelSet> {
    const architecture = archiveFor(facts);
    const manifestFile = new URL("manifest.json", directory);
    const text = (await readBundle(manifestFile)).toString("utf8");
    const manifest = parseManifest(text, fileURLToPath(manifestFile));
    const archive = manifest.archives[architecture];
    if (archive === undefined) {
      throw new DeviceUnavailableError(
        `${fileURLToPath(manifestFile)} has no archive "${architecture}", which ${facts.name} needs. ${REINSTALL}`,
      );
    }
    const archiveFile = new URL(archive.file, directory);
    const file = fileURLToPath(archiveFile);
    const packed = await readBundle(archiveFile);
    let images: Uint8Array;
    try {
      images = await decompress(packed);
    } catch (error) {
      throw new DeviceUnavailableError(`${file} cannot be decompressed. ${REINSTALL}`, {
        cause: error,
      });
    }
    return new KernelSet(driver, facts, manifest, architecture, file, images);
  }

  private constructor(
    driver: Driver,
    facts: DeviceFacts,
    manifest: Manifest,
    architecture: string,
    file: string,
    archive: Uint8Array,
  ) {
    this.#driver = driver;
    this.manifest = manifest;
    this.architecture = architecture;
    this.#file = file;
    this.#archive = archive;
    // Code for one member of a family may want more shared memory than this one has (8.6 beside 8.0).
    for (const entry of manifest.kernels) {
      if (entry.arch !== architecture || entry.shared > facts.sharedPerBlockOptin) continue;
      const launch_pdl = entry.launch_pdl && driver.version >= DEPENDENT_LAUNCHES_SINCE;
      const kernel = new LazyKernel({ ...entry, launch_pdl }, () => this.#load(entry));
      const { operator } = entry.selects;
      const others = this.#kernels.get(operator);
      if (others === undefined) this.#kernels.set(operator, [kernel]);
      else others.push(kernel);
    }
  }

  /** All kernels that serve for these values, those of an operator in the manifest's order. */
  all(selects: Selects): Kernel[] {
    return this.#of(selects).filter(({ entry }) => serves(entry, selects));
  }

  /**
   * The first kernel that serves for these values.
   *
   * @throws DeviceUnavailableError if there is none
   */
  find(selects: Selects): Kernel {
    const found = this.#of(selects).find(({ entry }) => serves(entry, selects));
    return found ?? this.missing(selects);
  }

  /** @throws DeviceUnavailableError saying what was looked for */
  missing(selects: Selects): never {
    const wanted = Object.entries(selects).map(([field, value]) => `${field} ${value}`);
    throw new DeviceUnavailableError(
      `The kernel bundle has no ${this.architecture} kernel for ${wanted.join(", ")}. ${REINSTALL}`,
    );
  }

  /**
   * Loads a small kernel: a driver that does not take that one takes none. With PTX it is
   * compiled.
   *
   * @throws DeviceUnavailableError if it cannot be loaded
   */
  tryOut(): void {
    void this.find(SMALL).fn;
  }

  /** Unloads all kernels; harmless when repeated. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const module of this.#modules) release(() => this.#driver.unloadModule(module));
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #of({ operator }: Selects): readonly LazyKernel[] {
    if (operator === undefined) return [...this.#kernels.values()].flat();
    return this.#kernels.get(operator) ?? [];
  }

  #load(entry: KernelEntry): bigint {
    if (this.#closed) throw new DisposedError("The set of kernels");
    const image = this.#image(entry);
    try {
      const module = this.#driver.loadModule(image);
      this.#modules.push(module);
      const fn = this.#driver.getFunction(module, entry.entry);
      this.#checkParameters(entry, fn);
      if (entry.shared > SHARED_WITHOUT_ASKING) {
        this.#driver.setMaxDynamicShared(fn, entry.shared);
      }
      return fn;
    } catch (error) {
      // Refused by the driver, or before it could see an image that is not all there.
      const refused = error instanceof DeviceFailedError || error instanceof InvalidArgumentError;
      if (!refused) throw error;
      throw new DeviceUnavailableError(
        `Kernel ${entry.name} of ${this.#file} cannot be loaded: ${error.message}`,
        { cause: error },
      );
    }
  }

  #image(entry: KernelEntry): Uint8Array {
    const { offset, bytes, sha256 } = entry.image;
    if (offset + bytes > this.#archive.length) {
      this.#damaged(
        entry,
        `its image ends at byte ${offset + bytes}, the archive at ${this.#archive.length}`,
      );
    }
    const image = this.#archive.subarray(offset, offset + bytes);
    const found = createHash("sha256").update(image).digest("hex");
    if (found !== sha256) {
      this.#damaged(entry, `its image has sha256 ${found}, the manifest says ${sha256}`);
    }
    if (this.architecture !== PTX || image.at(-1) === 0) return image;
    // The driver reads text up to a zero byte.
    const text = new Uint8Array(bytes + 1);
    text.set(image);
    return text;
  }

  #checkParameters(entry: KernelEntry, fn: bigint): void {
    const found = this.#driver.functionParameters(fn);
    // A driver that cannot tell leaves it at the image's hash.
    if (found === null) return;
    if (found.length !== entry.args.length) {
      this.#damaged(
        entry,
        `its code has ${found.length} parameters, the manifest ${entry.args.length}`,
      );
    }
    for (const [index, argument] of entry.args.entries()) {
      const size = found[index]?.size;
      const wanted = parameterBytes(argument);
      if (size === wanted) continue;
      this.#damaged(
        entry,
        `parameter ${index} (${argument.name}) has ${size} bytes in its code, and ${wanted} as the manifest's ${isPointer(argument.type) ? "pointer" : argument.type}`,
      );
    }
  }

  #damaged(entry: KernelEntry, what: string): never {
    throw new DeviceUnavailableError(
      `Kernel ${entry.name} of ${this.#file} does not fit the manifest: ${what}. ${REINSTALL}`,
    );
  }
}

class LazyKernel implements Kernel {
  readonly entry: KernelEntry;
  readonly #load: () => bigint;
  #fn: bigint | undefined;

  constructor(entry: KernelEntry, load: () => bigint) {
    this.entry = entry;
    this.#load = load;
  }

  get fn(): bigint {
    this.#fn ??= this.#load();
    return this.#fn;
  }
}

function serves({ selects }: KernelEntry, wanted: Selects): boolean {
  return Object.entries(wanted).every(([field, value]) => {
    const offered = selects[field];
    if (typeof offered !== "object") return offered === value;
    const { least = Number.NEGATIVE_INFINITY, most = Number.POSITIVE_INFINITY } = offered;
    return typeof value === "number" && value >= least && value <= most;
  });
}

async function readBundle(file: URL): Promise<Buffer> {
  try {
    return await readFile(file);
  } catch (error) {
    throw new DeviceUnavailableError(`${fileURLToPath(file)} cannot be read. ${REINSTALL}`, {
      cause: error,
    });
  }
}
