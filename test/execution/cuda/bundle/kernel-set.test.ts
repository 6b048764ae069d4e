import assert from "node:assert/strict";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { after, before, describe, it } from "node:test";
import { brotliCompressSync } from "node:zlib";
import {
  DeviceFailedError,
  DeviceUnavailableError,
  InvalidArgumentError,
} from "../../../../src/errors.ts";
import { archiveFor, KernelSet } from "../../../../src/execution/cuda/bundle/kernel-set.ts";
import { parseManifest } from "../../../../src/execution/cuda/bundle/manifest.ts";
import { checkModuleImage } from "../../../../src/execution/cuda/driver/image.ts";
import { FakeModules, facts, SHIPPED, TrustingModules } from "./fake-modules.ts";
import { madeBundle, writeBundle } from "./made-bundle.ts";

const PROJECT = {
  operator: "project",
  element: "bfloat16",
  gated: true,
  activations: "logistic",
  rows_per_tile: 64,
  extras: true,
};

/** Bytes of an image that nobody waits for. */
const MOST_TO_TRY = 10_000;

describe("the archive for a device", () => {
  for (const [capability, archive] of [
    [[8, 0], "sm_80"],
    [[8, 6], "sm_80"],
    [[8, 9], "sm_80"],
    [[9, 0], "sm_90a"],
    [[10, 0], "sm_100a"],
    [[10, 3], "ptx"],
    [[11, 0], "ptx"],
    [[12, 0], "sm_120a"],
    [[12, 1], "ptx"],
  ] as const) {
    it(`of compute capability ${capability.join(".")} is ${archive}`, () => {
      assert.equal(archiveFor(facts({ capability })), archive);
    });
  }

  it("is none below 8.0", () => {
    assert.throws(() => archiveFor(facts({ capability: [7, 5], name: "Tesla T4" })), {
      name: "DeviceUnavailableError",
      message: /^Tesla T4 has compute capability 7\.5\. .*8\.0/,
    });
  });
});

describe("a set of kernels", () => {
  let bundle: ReturnType<typeof writeBundle>;
  before(() => {
    bundle = writeBundle();
    // Of the others not a byte is read.
    for (const other of ["sm_100a", "sm_120a"]) rmSync(path.join(bundle.folder, `${other}.br`));
  });
  after(() => bundle.remove());

  it("loads a kernel when it is first asked for its function, and once", async () => {
    const modules = new FakeModules();
    const set = await KernelSet.open(modules.driver, facts(), bundle.directory);
    assert.equal(set.architecture, "sm_90a");
    const kernel = set.find(PROJECT);
    assert.equal(kernel.entry.name, "project_gated_logistic_extras_bf16_rows64");
    assert.deepEqual(modules.names, []);
    assert.equal(kernel.fn, 2000n);
    assert.equal(set.find(PROJECT).fn, 2000n);
    assert.deepEqual(modules.names, ["project_gated_logistic_extras_bf16_rows64"]);
  });

  it("is tried out with one kernel, which is not loaded again", async () => {
    for (const capability of [
      [9, 0],
      [12, 1],
    ] as const) {
      const modules = new FakeModules();
      const set = await KernelSet.open(modules.driver, facts({ capability }), bundle.directory);
      set.tryOut();
      set.tryOut();
      void set.find({ operator: "tidy" }).fn;
      assert.deepEqual(modules.names, ["tidy"]);
    }
  });

  it("asks for shared memory beyond what every kernel may have", async () => {
    const modules = new FakeModules();
    const set = await KernelSet.open(modules.driver, facts(), bundle.directory);
    void set.find({ ...PROJECT, rows_per_tile: 128 }).fn;
    void set.find({ operator: "mark" }).fn;
    assert.deepEqual(modules.shared, []);
    const bare = madeBundle();
    for (const kernel of bare.manifest.kernels) kernel["shared"] = 49153;
    const large = writeBundle(bare);
    try {
      const other = await KernelSet.open(modules.driver, facts(), large.directory);
      const { fn } = other.find({ operator: "mark" });
      assert.deepEqual(modules.shared, [[fn, 49153]]);
    } finally {
      large.remove();
    }
  });

  it("leaves out kernels that want more shared memory than a block can have", async () => {
    const modules = new FakeModules();
    const small = facts({ capability: [8, 6], sharedPerBlockOptin: 200 * 64 });
    const set = await KernelSet.open(modules.driver, small, bundle.directory);
    const rows = set.all({ operator: "project", element: "bfloat16" });
    assert.deepEqual(
      new Set(rows.map(({ entry }) => entry.selects["rows_per_tile"])),
      new Set([64, 16]),
    );
  });

  it("finds by ranges, and says what it does not find", async () => {
    const modules = new FakeModules();
    const set = await KernelSet.open(modules.driver, facts(), bundle.directory);
    const gate = (outputs: number) =>
      set.find({ operator: "gate", element: "bfloat16", weights: "float32", outputs }).entry.name;
    assert.deepEqual(
      [1, 2048, 2049, 65536, 65537, 524288, 524289, 2 ** 24].map(gate),
      ["few", "few", "some", "some", "many", "many", "most", "most"].map(
        (amount) => `gate_bf16_fp32_${amount}`,
      ),
    );
    assert.throws(() => set.find({ operator: "gate", element: "int8" }), {
      name: "DeviceUnavailableError",
      message: /no sm_90a kernel for operator gate, element int8\. Install/,
    });
  });

  it("gives PTX to the driver with a zero byte at its end", async () => {
    const modules = new FakeModules();
    const set = await KernelSet.open(
      modules.driver,
      facts({ capability: [10, 3] }),
      bundle.directory,
    );
    assert.equal(set.architecture, "ptx");
    void set.find({ operator: "mark" }).fn;
    assert.equal(modules.loaded[0]?.at(-1), 0);
    assert.deepEqual(modules.names, ["mark"]);
  });

  it("loads every kernel there is for the GPU, and unloads them once", async () => {
    const modules = new FakeModules();
    const set = await KernelSet.open(modules.driver, facts(), bundle.directory);
    for (const kernel of set.all({})) void kernel.fn;
    const kernels = set.manifest.kernels.filter(({ arch }) => arch === "sm_90a");
    assert.equal(modules.loaded.length, kernels.length);
    set.close();
    set.close();
    assert.equal(modules.unloaded.length, kernels.length);
    assert.equal(new Set(modules.unloaded).size, kernels.length);
  });

  it("loads nothing once it is closed", async () => {
    const set = await KernelSet.open(new FakeModules().driver, facts(), bundle.directory);
    const kernel = set.find({ operator: "mark" });
    set.close();
    assert.throws(() => kernel.fn, { name: "DisposedError" });
  });

  for (const [what, parameters, message] of [
    [
      "a parameter too few",
      (sizes: readonly number[]) => sizes.slice(1),
      /Kernel mark of .*sm_90a\.br does not fit the manifest: its code has 7 parameters, the manifest 8/,
    ],
    [
      "a parameter of another size",
      (sizes: readonly number[]) => sizes.map((size, index) => (index === 3 ? 8 : size)),
      /Kernel mark .*parameter 3 \(experts\) has 8 bytes in its code, and 4 as the manifest's i32/,
    ],
    [
      "a pointer that is none",
      (sizes: readonly number[]) => sizes.map((size, index) => (index === 0 ? 4 : size)),
      /parameter 0 \(ids\) has 4 bytes in its code, and 8 as the manifest's pointer/,
    ],
  ] as const) {
    it(`refuses code with ${what}`, async () => {
      const modules = new FakeModules();
      modules.parameters = ({ sizes }) => parameters(sizes);
      const set = await KernelSet.open(modules.driver, facts(), bundle.directory);
      assert.throws(() => set.find({ operator: "mark" }).fn, {
        name: "DeviceUnavailableError",
        message,
      });
      // What was loaded to be looked at is unloaded with the rest.
      set.close();
      assert.equal(modules.unloaded.length, 1);
    });
  }

  it("takes code on its hash where the driver cannot tell its parameters", async () => {
    const modules = new FakeModules();
    modules.functionParameters = () => null;
    const set = await KernelSet.open(modules.driver, facts(), bundle.directory);
    assert.equal(set.find({ operator: "mark" }).fn, 2000n);
  });

  it("launches no kernel early where the driver cannot capture that", async () => {
    const dependent = madeBundle();
    for (const kernel of dependent.manifest.kernels) {
      kernel["launch_pdl"] = kernel["name"] === "mark";
    }
    const other = writeBundle(dependent);
    try {
      for (const [version, expected] of [
        [12020, false],
        [12030, true],
      ] as const) {
        const modules = new FakeModules();
        modules.version = version;
        const set = await KernelSet.open(modules.driver, facts(), other.directory);
        assert.equal(set.find({ operator: "mark" }).entry.launch_pdl, expected);
        assert.equal(set.find(PROJECT).entry.launch_pdl, false);
      }
    } finally {
      other.remove();
    }
  });

  it("names kernel and file where an image is refused", async () => {
    const modules = new FakeModules();
    const set = await KernelSet.open(modules.driver, facts(), bundle.directory);
    const failure = new DeviceFailedError("cuModuleLoadData: CUDA_ERROR_INVALID_IMAGE.");
    modules.beforeLoad = () => {
      throw failure;
    };
    assert.throws(
      () => set.find({ operator: "mark" }).fn,
      (error: Error) => {
        assert.ok(error instanceof DeviceUnavailableError);
        assert.match(
          error.message,
          /Kernel mark of .*sm_90a\.br cannot be loaded: cuModuleLoadData/,
        );
        assert.equal(error.cause, failure);
        return true;
      },
    );
    // An image whose hash is right, and which is neither PTX nor a whole cubin.
    for (const image of [Buffer.from("\x7fELF"), Buffer.from("no code")]) {
      modules.beforeLoad = () => checkModuleImage(image);
      assert.throws(
        () => set.find({ operator: "mark" }).fn,
        (error: Error) => {
          assert.ok(error instanceof DeviceUnavailableError, String(error));
          assert.match(
            error.message,
            /Kernel mark of .*sm_90a\.br cannot be loaded: A .* of \d bytes .*Reinstall/,
          );
          assert.ok(error.cause instanceof InvalidArgumentError);
          return true;
        },
      );
    }
    modules.beforeLoad = () => {
      throw new TypeError("a bug");
    };
    assert.throws(() => set.find({ operator: "mark" }).fn, TypeError);
  });
});

describe("a damaged bundle", () => {
  const open = async (damage: (folder: string, made: ReturnType<typeof madeBundle>) => void) => {
    const made = madeBundle();
    const bundle = writeBundle(made);
    try {
      damage(bundle.folder, made);
      return await KernelSet.open(new FakeModules().driver, facts(), bundle.directory);
    } finally {
      bundle.remove();
    }
  };

  it("names the file that is missing", async () => {
    await assert.rejects(
      open((folder) => rmSync(path.join(folder, "manifest.json"))),
      /manifest\.json cannot be read\. Install/,
    );
    await assert.rejects(
      open((folder) => rmSync(path.join(folder, "sm_90a.br"))),
      {
        name: "DeviceUnavailableError",
        message: /sm_90a\.br cannot be read/,
      },
    );
  });

  it("names the archive that cannot be decompressed, or is not there", async () => {
    await assert.rejects(
      open((folder) => writeFileSync(path.join(folder, "sm_90a.br"), "no brotli")),
      { name: "DeviceUnavailableError", message: /sm_90a\.br cannot be decompressed/ },
    );
    await assert.rejects(
      open((folder, { manifest }) => {
        delete (manifest["archives"] as Record<string, unknown>)["sm_90a"];
        writeFileSync(path.join(folder, "manifest.json"), JSON.stringify(manifest));
      }),
      /has no archive "sm_90a", which NVIDIA Test needs/,
    );
  });

  it("names the kernel whose image is cut off or changed", async () => {
    const images = madeBundle().archives.get("sm_90a") as Buffer;
    const cut = await open((folder) =>
      writeFileSync(path.join(folder, "sm_90a.br"), brotliCompressSync(images.subarray(0, -1))),
    );
    assert.throws(() => cut.find({ operator: "tidy" }).fn, /Kernel tidy .*its image ends at byte/);
    images[images.length - 1] = 0;
    const changed = await open((folder) =>
      writeFileSync(path.join(folder, "sm_90a.br"), brotliCompressSync(images)),
    );
    assert.throws(() => changed.find({ operator: "tidy" }).fn, {
      name: "DeviceUnavailableError",
      message: /Kernel tidy .*its image has sha256 [0-9a-f]{64}, the manifest says [0-9a-f]{64}/,
    });
  });
});

describe("the bundle of the package", {
  skip: SHIPPED === undefined ? "kernels/bundle is not built" : false,
}, () => {
  for (const capability of [
    [8, 0],
    [9, 0],
    [10, 0],
    [12, 0],
    [12, 1],
  ] as const) {
    it(`is whole for compute capability ${capability.join(".")}`, async () => {
      const directory = SHIPPED as URL;
      const file = new URL("manifest.json", directory);
      const modules = new TrustingModules(parseManifest(readFileSync(file, "utf8"), "manifest"));
      const set = await KernelSet.open(modules.driver, facts({ capability }), directory);
      set.tryOut();
      assert.ok((modules.loaded[0]?.length ?? 0) <= MOST_TO_TRY, "opening loads a large kernel");
      for (const kernel of set.all({})) void kernel.fn;
      const entries = set.manifest.kernels.filter(({ arch }) => arch === set.architecture);
      assert.equal(modules.loaded.length, entries.length);
      assert.ok(entries.length > 80);
    });
  }
});
