/** Opening shared libraries: what is found, what is missing, and what passes through. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import {
  bindAll,
  loadKoffi,
  type NativeLibrary,
  openLibrary,
} from "../../../src/execution/native/library.ts";

/** The C library is everywhere, under one of these names. */
const C_LIBRARY = ["libc.so.6", "libc.musl-x86_64.so.1", "libc.musl-aarch64.so.1"];

const koffi = loadKoffi(process.platform, process.arch);
const skip = typeof koffi === "string" ? koffi : false;
if (skip !== false) console.log(`skipped: ${skip}`);

function libc(): NativeLibrary {
  const opened = openLibrary("the C library", C_LIBRARY);
  assert.ok("library" in opened, "reason" in opened ? opened.reason : "");
  return opened.library;
}

test("platforms without a binary are named, and so is one that is not installed", () => {
  assert.equal(
    loadKoffi("win32", "x64"),
    "there is no prebuilt FFI for win32-x64 (there is for linux-x64, linux-arm64)",
  );
  const other = process.arch === "x64" ? "arm64" : "x64";
  const absent = loadKoffi("linux", other);
  assert.ok(typeof absent === "string");
  assert.match(absent, new RegExp(`@koromix/koffi-linux-${other} could not be loaded .*--omit`));
});

test("a library is opened once", { skip }, () => {
  assert.equal(libc(), libc());
});

test("the first name that exists is taken", { skip }, () => {
  const opened = openLibrary("the C library", ["libnexus-nowhere.so.1", ...C_LIBRARY]);
  assert.ok("library" in opened);
  assert.equal(opened.library, libc());
});

test("a library that is nowhere is a reason with all names", { skip }, () => {
  const opened = openLibrary("a thing", ["libnexus-nowhere.so.1", "/nowhere/lib.so"]);
  assert.deepEqual(opened, {
    reason:
      "libnexus-nowhere.so.1 (a thing) was not found (looked for libnexus-nowhere.so.1, /nowhere/lib.so)",
  });
});

test("a file that is no library is told from one that is absent", { skip }, (t) => {
  const folder = mkdtempSync(join(tmpdir(), "nexus-library-"));
  t.after(() => rmSync(folder, { recursive: true }));
  const file = join(folder, "libbroken.so");
  writeFileSync(file, "not an ELF file, but long enough for one to begin ".repeat(4));
  const opened = openLibrary("a broken thing", [file, ...C_LIBRARY.map((name) => `x${name}`)]);
  assert.ok("reason" in opened);
  assert.match(opened.reason, /libbroken\.so \(a broken thing\) could not be loaded: /);
});

test("a library that lacks another is told from one that is absent", { skip }, (t) => {
  const folder = mkdtempSync(join(tmpdir(), "nexus-library-"));
  t.after(() => rmSync(folder, { recursive: true }));
  const source = join(folder, "empty.c");
  writeFileSync(source, "");
  const [needed, file] = [join(folder, "libnexus-needed.so"), join(folder, "libneedy.so")];
  const build = (...more: string[]) =>
    spawnSync(process.env["CC"] ?? "cc", ["-shared", "-fPIC", source, ...more]);
  const built = build("-Wl,-soname,libnexus-needed.so", "-o", needed);
  if (built.error !== undefined) return t.skip(`no C compiler: ${built.error.message}`);
  build("-Wl,--no-as-needed", needed, "-o", file);
  rmSync(needed);
  const opened = openLibrary("a needy thing", [file, ...C_LIBRARY.map((name) => `x${name}`)]);
  assert.ok("reason" in opened);
  assert.match(opened.reason, /libneedy\.so \(a needy thing\) could not be loaded: .*nexus-needed/);
});

test("functions that are missing are named together", { skip }, () => {
  const table = { abs: ["int32_t"], nexus_one: [], nexus_two: ["void *"] } as const;
  assert.deepEqual(bindAll(libc(), table), { missing: ["nexus_one", "nexus_two"] });
  const { abs } = table;
  const bound = bindAll(libc(), { abs });
  assert.ok("functions" in bound);
  assert.equal(bound.functions.abs(-3), 3);
});

test("addresses, arrays, sizes and strings reach C", { skip }, () => {
  const library = libc();
  const block = library.allocate(64);
  const bytes = new Uint8Array(block.bytes);
  assert.deepEqual([...bytes], Array(64).fill(0));
  const memcpy = library.find("memcpy", ["void *", "void *", "size_t"]);
  const strlen = library.find("strlen", ["void *"]);
  memcpy?.(block.address, Buffer.from("xxabc\0").subarray(2), 4);
  assert.equal(Buffer.from(block.bytes, 0, 3).toString(), "abc");
  assert.equal(strlen?.(block.address), 3);
  assert.equal(library.find("strlen", ["str"])?.("four"), 4);

  // A pointer in native memory, and the string behind it.
  const pointer = block.address + 32n;
  new DataView(block.bytes).setBigUint64(32, block.address, true);
  assert.equal(library.addressAt(pointer), block.address);
  assert.equal(library.stringAt(pointer), "abc");
  assert.equal(library.stringAt(block.address + 48n), null);
  new Uint8Array(library.view(block.address, 1))[0] = 0x7a;
  assert.equal(bytes[0], 0x7a);
});

test("a call can run on another thread", { skip }, async () => {
  const abs = libc().find("abs", ["int32_t"]);
  const status = await new Promise<number>((resolve, reject) => {
    abs?.async(-7, (error, result) => (error === null ? resolve(result) : reject(error)));
  });
  assert.equal(status, 7);
});
