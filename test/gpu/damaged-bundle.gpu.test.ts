/**
 * Damaged kernel bundles, each in a copy of the package and opened by a process of its own: what has another hash
 * than the manifest says, and what has the right one, so that the driver is the first to see what it is.
 */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { cp, mkdir, readFile, symlink, writeFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { brotliCompressSync, brotliDecompressSync, constants } from "node:zlib";
import { inTemporaryFolder } from "../cli/nexus.ts";
import { gpuTest } from "./gpu.ts";
import { runChild, type Said } from "./run-child.ts";

/** The package, from dist/test/gpu. */
const ROOT = fileURLToPath(new URL("../../../", import.meta.url));

/** No kernel is smaller. */
const WRONG_EVERY = 1024;

/** The one that opening a device loads. */
const TRIED_OUT = "tidy";

/** What these tests read and change of the manifest. */
interface Manifest {
  readonly archives: Readonly<Record<string, { readonly file: string }>>;
  readonly kernels: readonly {
    readonly name: string;
    readonly arch: string;
    readonly image: { readonly offset: number; readonly bytes: number; sha256: string };
  }[];
}

interface Copy {
  readonly script: string;
  readonly manifestFile: string;
  readonly manifest: Manifest;
  readonly archives: readonly {
    readonly name: string;
    readonly file: string;
    readonly packed: Buffer;
  }[];
}

/** A copy of the package as it is installed: the bundle is found beside the code. */
function inCopy(work: (copy: Copy) => Promise<void>): Promise<void> {
  return inTemporaryFolder(async (folder) => {
    await cp(path.join(ROOT, "dist"), path.join(folder, "dist"), { recursive: true });
    await cp(path.join(ROOT, "package.json"), path.join(folder, "package.json"));
    await symlink(path.join(ROOT, "node_modules"), path.join(folder, "node_modules"));
    const bundle = path.join(folder, "kernels/bundle");
    await mkdir(bundle, { recursive: true });
    await cp(path.join(ROOT, "kernels/bundle"), bundle, { recursive: true });
    const manifestFile = path.join(bundle, "manifest.json");
    const manifest = JSON.parse(await readFile(manifestFile, "utf8")) as Manifest;
    const archives = await Promise.all(
      Object.entries(manifest.archives).map(async ([name, archive]) => {
        const file = path.join(bundle, archive.file);
        return { name, file, packed: await readFile(file) };
      }),
    );
    const script = path.join(folder, "dist/test/gpu/child.js");
    assert.equal(runChild("open", { script }).finite, true, "the copy is sound to begin with");
    await work({ script, manifestFile, manifest, archives });
  });
}

function compressed(images: Buffer): Buffer {
  return brotliCompressSync(images, { params: { [constants.BROTLI_PARAM_QUALITY]: 1 } });
}

function assertUnavailable(said: Said, message: RegExp): void {
  assert.equal(said.code, "ERR_DEVICE_UNAVAILABLE", JSON.stringify(said));
  assert.match(said.message as string, message);
}

gpuTest("a damaged kernel bundle is named", () =>
  inCopy(async ({ script, manifestFile, archives }) => {
    // Wrong bytes in what is packed, and the second half missing.
    const damages = [
      (archive: Buffer) => {
        const images = brotliDecompressSync(archive);
        for (let at = 0; at < images.length; at += WRONG_EVERY)
          images[at] = ~(images[at] as number);
        return compressed(images);
      },
      (archive: Buffer) => archive.subarray(0, archive.length >> 1),
    ];
    for (const damage of damages) {
      for (const { file, packed } of archives) await writeFile(file, damage(packed));
      assertUnavailable(runChild("open", { script }), /kernels.bundle/);
    }
    await writeFile(manifestFile, "{");
    assertUnavailable(runChild("open", { script }), /manifest\.json/);
  }),
);

/** Text that no compiler of PTX takes, as long as it is. */
function nonsense(image: Buffer): void {
  image.fill("this is no code\n");
  image[image.length - 1] = 0;
}

/** Makes a cubin one for another kind of machine than a GPU (e_machine). */
function foreign(image: Buffer): void {
  if (image.subarray(1, 4).toString() === "ELF") image.writeUInt16LE(0, 18);
  else nonsense(image);
}

/** Damages the images of some kernels in all archives, and has the manifest say that they are right. */
async function damageKernels(
  { manifestFile, manifest, archives }: Copy,
  chosen: (name: string) => boolean,
  damage: (image: Buffer) => void,
): Promise<void> {
  const changed = structuredClone(manifest);
  for (const { name, file, packed } of archives) {
    const images = brotliDecompressSync(packed);
    for (const kernel of changed.kernels) {
      if (kernel.arch !== name || !chosen(kernel.name)) continue;
      const { offset, bytes } = kernel.image;
      const image = images.subarray(offset, offset + bytes);
      damage(image);
      kernel.image.sha256 = createHash("sha256").update(image).digest("hex");
    }
    await writeFile(file, compressed(images));
  }
  await writeFile(manifestFile, JSON.stringify(changed));
}

for (const damage of [nonsense, foreign]) {
  gpuTest(`an image that the driver refuses is named, ${damage.name}`, () =>
    inCopy(async (copy) => {
      const { script } = copy;
      await damageKernels(copy, (name) => name === TRIED_OUT, damage);
      assertUnavailable(
        runChild("open", { script }),
        /^Kernel tidy of \S*kernels.bundle\S+ cannot be loaded: cuModule\w+ failed with CUDA_ERROR_/,
      );
      assert.equal(runChild("auto", { script }).kind, "cpu", "auto takes what takes no kernel");

      await damageKernels(copy, (name) => name !== TRIED_OUT, damage);
      assertUnavailable(
        runChild("open", { script }),
        /^Kernel (?!tidy )\w+ of \S*kernels.bundle\S+ cannot be loaded: cuModule\w+ failed with CUDA_ERROR_/,
      );
    }),
  );
}
