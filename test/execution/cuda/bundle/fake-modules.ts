/** The part of a driver that loads modules, taking notes; it reads the images of made-bundle.ts. */

import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { type Manifest, parameterBytes } from "../../../../src/execution/cuda/bundle/manifest.ts";
import type {
  DeviceFacts,
  Driver,
  KernelParameter,
} from "../../../../src/execution/cuda/driver/driver.ts";
import type { ImageNote } from "./made-bundle.ts";

export class FakeModules {
  readonly loaded: Uint8Array[] = [];
  readonly unloaded: bigint[] = [];
  /** [function, bytes] */
  readonly shared: [bigint, number][] = [];
  /** What the code says of its parameters, where it is not what the image says. */
  parameters: (note: ImageNote) => readonly number[] = (note) => note.sizes;
  /** Called before an image is taken. */
  beforeLoad: () => void = () => {};
  version = 13000;

  get driver(): Driver {
    return this as unknown as Driver;
  }

  get names(): string[] {
    return this.loaded.map((image) => noteOf(image).name);
  }

  loadModule(image: Uint8Array): bigint {
    this.beforeLoad();
    this.loaded.push(image);
    return BigInt(1000 + this.loaded.length - 1);
  }

  unloadModule(module: bigint): void {
    this.unloaded.push(module);
  }

  getFunction(module: bigint, _name: string): bigint {
    return module + 1000n;
  }

  functionParameters(fn: bigint): KernelParameter[] | null {
    const note = noteOf(this.loaded[Number(fn) - 2000] as Uint8Array);
    return this.parameters(note).map((size, index) => ({ offset: index * 8, size }));
  }

  setMaxDynamicShared(fn: bigint, bytes: number): void {
    this.shared.push([fn, bytes]);
  }
}

/** Takes real code too: of an image it does not know by its bytes, it says what the manifest does. */
export class TrustingModules extends FakeModules {
  readonly #sizes: ReadonlyMap<string, readonly number[]>;

  constructor({ kernels }: Manifest) {
    super();
    this.#sizes = new Map(
      kernels.map(({ image, args }) => [image.sha256, args.map(parameterBytes)]),
    );
  }

  override functionParameters(fn: bigint): KernelParameter[] {
    const image = this.loaded[Number(fn) - 2000] as Uint8Array;
    const text = image.at(-1) === 0 ? image.subarray(0, -1) : image;
    const sizes = [image, text]
      .map((bytes) => this.#sizes.get(createHash("sha256").update(bytes).digest("hex")))
      .find((found) => found !== undefined);
    return (sizes ?? []).map((size, index) => ({ offset: index * 8, size }));
  }
}

/** Where the bundle of the package is, or undefined where it is not built. */
export const SHIPPED: URL | undefined = [new URL("../../../../../", import.meta.url).pathname, "."]
  .map((root) => pathToFileURL(`${path.resolve(root, "kernels/bundle")}/`))
  .find((directory) => existsSync(new URL("manifest.json", directory)));

function noteOf(image: Uint8Array): ImageNote {
  return JSON.parse(Buffer.from(image).toString().replace(/\0$/, ""));
}

export function facts(overrides: Partial<DeviceFacts> = {}): DeviceFacts {
  return {
    ordinal: 0,
    name: "NVIDIA Test",
    uuid: "GPU-0",
    memoryBytes: 2 ** 37,
    memoryBytesPerSecond: 4.8e12,
    multiprocessors: 132,
    capability: [9, 0],
    l2Bytes: 50 * 2 ** 20,
    maxPersistingL2Bytes: 2 ** 24,
    maxWindowBytes: 2 ** 27,
    sharedPerBlockOptin: 232448,
    readsPageable: false,
    ...overrides,
  };
}
