/**
 * The shipped form of the kernels: what kernels/triton/build.py wrote, as a manifest
 * that can be read and one brotli archive for each architecture, and back.
 *
 * An archive is its kernels' images (cubins; PTX as text) one after the other, in the
 * manifest's order, compressed as a whole: kernels are much alike, so this is a
 * fifth of what they take one by one. The manifest is JSON with a kernel a line. What
 * many kernels share is written once: a kernel's `args` and `grid` are indices into
 * the lists of these names in `tables`.
 *
 * All hashes are of bytes before compression. Another release of brotli may
 * compress the same bytes otherwise; that is no difference.
 */

import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { brotliCompressSync, brotliDecompressSync, constants } from "node:zlib";

const KERNELS = fileURLToPath(new URL(".", import.meta.url));
/** What is committed and shipped. */
export const BUNDLE = join(KERNELS, "bundle");
export const MANIFEST = "manifest.json";

/** Fields of a kernel that are written down once for all that have the same. */
const TABLED = ["args", "grid"];

/** All that decides what is in the bundle, by path from kernels/. */
function sources() {
  const python = ["experts", "routing", "variants"].flatMap((folder) =>
    readdirSync(join(KERNELS, "triton", folder))
      .filter((name) => name.endsWith(".py"))
      .map((name) => `triton/${folder}/${name}`),
  );
  return [
    ...python,
    "triton/build.py",
    "triton/l2.py",
    "triton/overlap.py",
    "triton/ptx_checks.py",
    "pack.mjs",
  ].sort();
}

function sha256(bytes) {
  return createHash("sha256").update(bytes).digest("hex");
}

export function sourceHashes() {
  return Object.fromEntries(
    sources().map((name) => [name, sha256(readFileSync(join(KERNELS, name)))]),
  );
}

/**
 * The build in a folder, ready to be written or compared: the manifest, and the bytes of
 * every archive by its architecture.
 */
export function pack(folder) {
  const { kernels: built, ...rest } = JSON.parse(readFileSync(join(folder, MANIFEST), "utf8"));
  const tables = Object.fromEntries(TABLED.map((field) => [field, new Table()]));
  const images = new Map();
  const kernels = [];
  for (const { file, ...entry } of built) {
    const bytes = readFileSync(join(folder, file));
    const archive = images.get(entry.arch) ?? { parts: [], length: 0 };
    images.set(entry.arch, archive);
    for (const field of TABLED) entry[field] = tables[field].index(entry[field]);
    kernels.push({
      ...entry,
      image: { offset: archive.length, bytes: bytes.length, sha256: sha256(bytes) },
    });
    archive.parts.push(bytes);
    archive.length += bytes.length;
  }
  const archives = new Map([...images].map(([arch, { parts }]) => [arch, Buffer.concat(parts)]));
  const manifest = {
    ...rest,
    sources_sha256: sourceHashes(),
    archives: Object.fromEntries(
      [...archives].map(([arch, bytes]) => [
        arch,
        { file: `${arch}.br`, bytes: bytes.length, sha256: sha256(bytes) },
      ]),
    ),
    tables: Object.fromEntries(TABLED.map((field) => [field, tables[field].entries])),
    kernels,
  };
  return { manifest, archives };
}

/** Values, each once, by the order in which they came. */
class Table {
  entries = [];
  #indices = new Map();

  index(value) {
    const key = JSON.stringify(value);
    const known = this.#indices.get(key);
    if (known !== undefined) return known;
    this.#indices.set(key, this.entries.length);
    return this.entries.push(value) - 1;
  }
}

/** JSON with a line for each entry of a list, and for each field of the objects around it. */
function manifestText(value, indent = "") {
  const inner = `${indent} `;
  if (Array.isArray(value)) {
    return `[\n${value.map((entry) => inner + JSON.stringify(entry)).join(",\n")}\n${indent}]`;
  }
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  const fields = Object.entries(value).map(
    ([field, entry]) => `${inner}${JSON.stringify(field)}: ${manifestText(entry, inner)}`,
  );
  return `{\n${fields.join(",\n")}\n${indent}}`;
}

/** Writes what `pack` gave. An archive whose content is there already keeps its bytes. */
export function write({ manifest, archives }) {
  const files = new Map([[MANIFEST, Buffer.from(`${manifestText(manifest)}\n`)]]);
  for (const [arch, bytes] of archives) {
    const { file } = manifest.archives[arch];
    const there = readIfThere(join(BUNDLE, file));
    files.set(file, there && decompress(there)?.equals(bytes) ? there : compress(bytes));
  }
  rmSync(BUNDLE, { recursive: true, force: true });
  mkdirSync(BUNDLE, { recursive: true });
  for (const [name, bytes] of files) writeFileSync(join(BUNDLE, name), bytes);
  return [...files].map(([name, bytes]) => ({ name, bytes: bytes.length }));
}

function compress(bytes) {
  const params = {
    [constants.BROTLI_PARAM_QUALITY]: constants.BROTLI_MAX_QUALITY,
    [constants.BROTLI_PARAM_LGWIN]: constants.BROTLI_MAX_WINDOW_BITS,
    [constants.BROTLI_PARAM_SIZE_HINT]: bytes.length,
  };
  return brotliCompressSync(bytes, { params });
}

function decompress(bytes) {
  try {
    return brotliDecompressSync(bytes);
  } catch {
    return undefined;
  }
}

function readIfThere(file) {
  try {
    return readFileSync(file);
  } catch (error) {
    if (error.code === "ENOENT") return undefined;
    throw error;
  }
}

/** The committed manifest. @throws Error if there is none or it is not JSON */
export function committed() {
  return JSON.parse(readFileSync(join(BUNDLE, MANIFEST), "utf8"));
}

/** What in the committed bundle does not fit its own manifest or the sources; needs no Python. */
export function inconsistencies(manifest) {
  const found = differences("source", manifest.sources_sha256, sourceHashes());
  const files = new Set([MANIFEST]);
  for (const [arch, archive] of Object.entries(manifest.archives)) {
    files.add(archive.file);
    found.push(...archiveFaults(manifest, arch, archive));
  }
  for (const { name, arch } of manifest.kernels) {
    if (!(arch in manifest.archives)) found.push(`kernel ${name}: no archive for ${arch}`);
  }
  const stray = readdirSync(BUNDLE).filter((name) => !files.has(name));
  return [
    ...found,
    ...stray.map((name) => `${relative(".", join(BUNDLE, name))}: not in the manifest`),
  ];
}

function archiveFaults(manifest, arch, { file, bytes, sha256: wanted }) {
  const there = readIfThere(join(BUNDLE, file));
  if (there === undefined) return [`${file}: missing`];
  const content = decompress(there);
  if (content === undefined) return [`${file}: cannot be decompressed`];
  const found = [];
  let end = 0;
  for (const { name, image } of manifest.kernels.filter((kernel) => kernel.arch === arch)) {
    if (image.offset !== end)
      found.push(`${file}: ${name} does not begin where the one before ends`);
    end = image.offset + image.bytes;
    const hash = sha256(content.subarray(image.offset, end));
    if (hash !== image.sha256) found.push(`${file}: the image of ${name} differs from its hash`);
  }
  if (end !== content.length || bytes !== content.length || sha256(content) !== wanted) {
    found.push(`${file}: length or hash differ from the manifest`);
  }
  return found;
}

/**
 * How the committed bundle differs from one that was packed anew. Archives are compared by
 * the hashes in the manifest: `inconsistencies` holds these against the files.
 */
export function rebuiltDifferences(manifest, rebuilt) {
  const { kernels: oldKernels, ...old } = expanded(manifest);
  const { kernels: newKernels, ...now } = expanded(rebuilt);
  return [
    ...differences("manifest field", old, now),
    ...differences("kernel", byName(oldKernels), byName(newKernels)),
  ];
}

/** Without tables, in which one new kernel would shift all indices. */
function expanded({ tables, ...manifest }) {
  const kernels = manifest.kernels.map(({ image, ...kernel }) => ({
    ...kernel,
    ...Object.fromEntries(TABLED.map((field) => [field, tables[field][kernel[field]]])),
    image: { bytes: image.bytes, sha256: image.sha256 },
  }));
  return { ...manifest, kernels };
}

function byName(kernels) {
  return Object.fromEntries(kernels.map((kernel) => [`${kernel.name} (${kernel.arch})`, kernel]));
}

function differences(what, committedValues = {}, wantedValues = {}) {
  const names = new Set([...Object.keys(committedValues), ...Object.keys(wantedValues)]);
  return [...names].flatMap((name) => {
    if (!(name in committedValues)) return [`${what} ${name}: not in the bundle`];
    if (!(name in wantedValues)) return [`${what} ${name}: in the bundle only`];
    const same = JSON.stringify(committedValues[name]) === JSON.stringify(wantedValues[name]);
    return same ? [] : [`${what} ${name}: differs`];
  });
}
