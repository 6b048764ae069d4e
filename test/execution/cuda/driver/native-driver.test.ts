/**
 * The driver layer end to end, through the foreign-function layer into a C library that
 * stands for libcuda: arguments, structures, results and errors. What only a GPU can
 * show is in driver.gpu.test.ts.
 */

import assert from "node:assert/strict";
import { afterEach, describe, test } from "node:test";
import {
  DeviceFailedError,
  DeviceUnavailableError,
  OutOfDeviceMemoryError,
} from "../../../../src/errors.ts";
import { Context } from "../../../../src/execution/cuda/driver/context.ts";
import type { Driver } from "../../../../src/execution/cuda/driver/driver.ts";
import { CudaError, release } from "../../../../src/execution/cuda/driver/errors.ts";
import { PinnedMemory } from "../../../../src/execution/cuda/driver/pinned.ts";
import { LAUNCH_CONFIG } from "../../../../src/execution/cuda/driver/structs.ts";
import { testDriver } from "./driver-contract.ts";
import { buildFake, FakeCuda } from "./fake-cuda.ts";

const built = buildFake();
const skip = typeof built === "string" ? built : false;
if (skip !== false) console.log(`skipped: ${skip}`);

function fake(): FakeCuda {
  assert.ok(typeof built !== "string");
  return built;
}

function olderFake(version: number): FakeCuda {
  const older = buildFake(version);
  assert.ok(typeof older !== "string");
  return older;
}

/** Text that is PTX as far as the fake cares. */
const PTX = Buffer.from("good\0");

afterEach(() => {
  if (skip === false) assert.equal(fake().live(), 0, "something was not destroyed");
});

describe("against a fake libcuda", () => testDriver(() => fake().driver(), skip));

describe("what is passed", { skip }, () => {
  function onStream(body: (driver: Driver, stream: bigint) => void): void {
    const driver = fake().driver();
    using _context = new Context(driver, 0);
    const stream = driver.createStream(-5);
    fake().notes();
    try {
      body(driver, stream);
    } finally {
      driver.destroyStream(stream);
    }
  }

  test("facts", () => {
    assert.deepEqual(fake().driver().deviceFacts(0), {
      ordinal: 0,
      name: "Fake H200",
      uuid: "GPU-f0e1d2c3-b4a5-9687-7869-5a4b3c2d1e0f",
      memoryBytes: 150 * 2 ** 30,
      memoryBytesPerSecond: 2 * 3_201_000 * 1000 * (6144 / 8),
      multiprocessors: 132,
      capability: [9, 0],
      l2Bytes: 50 * 2 ** 20,
      maxPersistingL2Bytes: 31 * 2 ** 20,
      maxWindowBytes: 128 * 2 ** 20,
      sharedPerBlockOptin: 232448,
      readsPageable: true,
    });
  });

  test("priorities and limits", () => {
    onStream((driver) => {
      assert.deepEqual(driver.priorityRange(), [0, -5]);
      driver.destroyStream(driver.createStream(-3));
      driver.setPersistingL2Limit(5 * 2 ** 30);
      assert.equal(driver.persistingL2Limit(), 5 * 2 ** 30);
      driver.resetPersistingL2();
      assert.deepEqual(fake().notes(), [
        "stream priority -3",
        `persisting ${5 * 2 ** 30}`,
        "reset persisting",
      ]);
    });
  });

  test("kernels, eagerly and from a graph whose grid is changed", () => {
    onStream((driver, stream) => {
      const module = driver.loadModule(PTX);
      const fn = driver.getFunction(module, "kernel");
      assert.deepEqual(driver.functionParameters(fn), [
        { offset: 0, size: 8 },
        { offset: 8, size: 4 },
        { offset: 16, size: 8 },
      ]);
      driver.setMaxDynamicShared(fn, 98304);

      const memory = driver.allocatePinned(1024);
      const view = new DataView(memory.bytes);
      const table = 256;
      const values = 512;
      for (let i = 0; i < 3; i++) {
        view.setBigUint64(table + 8 * i, memory.address + BigInt(values + 8 * i), true);
      }
      view.setBigUint64(values, 2n ** 60n + 1n, true);
      view.setBigUint64(values + 8, 0xffffffff_00000007n, true); // four bytes are the parameter's
      view.setBigUint64(values + 16, 3n, true);
      const numbers = [20, 3, 2, 256, 1, 1, 98304];
      for (const [i, n] of numbers.entries()) view.setUint32(LAUNCH_CONFIG.gridX + 4 * i, n, true);
      view.setBigUint64(LAUNCH_CONFIG.stream, stream, true);
      view.setBigUint64(LAUNCH_CONFIG.attributes, memory.address + 128n, true);
      view.setUint32(LAUNCH_CONFIG.attributeCount, 1, true);
      view.setUint32(128, 6, true);
      view.setUint32(128 + 8, 1, true);
      const launch = (): void => driver.launchKernel(memory.address, fn, memory.address + 256n);

      launch();
      const line = (x: number, y: number, last = 3): string =>
        `kernel grid ${x} ${y} 2 block 256 1 1 shared 98304 attributes 1 ` +
        `values ${2n ** 60n + 1n} 7 ${last} attribute 6 = 1`;
      assert.deepEqual(fake().notes(), ["dynamic shared 98304", line(20, 3)]);

      driver.beginCapture(stream);
      launch();
      const node = driver.lastCapturedNode(stream);
      view.setBigUint64(values + 16, 99n, true); // captured values are the graph's own
      const graph = driver.endCapture(stream);
      const exec = driver.instantiateGraph(graph);
      driver.launchGraph(exec, stream);
      driver.setNodeLaunch(exec, node, { x: 8, y: 1, z: 2 }, memory.address + 256n);
      view.setBigUint64(values + 16, 98n, true); // and so are those that it is given later
      driver.launchGraph(exec, stream);
      assert.deepEqual(fake().notes(), [line(20, 3), line(8, 1, 99)]);

      driver.destroyGraphExec(exec);
      driver.destroyGraph(graph);
      driver.freePinned(memory.address);
      driver.unloadModule(module);
    });
  });

  test("tensor maps, innermost dimension first", () => {
    onStream((driver) => {
      const memory = driver.allocatePinned(256);
      const target = (memory.address + 63n) & ~63n;
      const encoded = new Uint8Array(memory.bytes, Number(target - memory.address), 128);
      driver.encodeTensorMap(target, {
        address: 0x7f0000001000n,
        element: "bfloat16",
        shape: [300_000_000, 2048],
        box: [128, 64],
        swizzle: 3,
        l2Promotion: 2,
      });
      assert.ok(encoded.every((byte) => byte === 2));
      driver.encodeTensorMap(target, {
        address: 0x7f0000002000n,
        element: "float32",
        // The last stride has more than 32 bits.
        shape: [3, 300, 70_000, 64],
        box: [1, 4, 16, 32],
        swizzle: 0,
        l2Promotion: 3,
      });
      assert.ok(encoded.every((byte) => byte === 4));
      assert.deepEqual(fake().notes(), [
        "tensor map of 9 at 0x7f0000001000 dims 2048 300000000 strides 4096 box 64 128 " +
          "steps 1 1 interleave 0 swizzle 3 promotion 2 fill 0",
        "tensor map of 7 at 0x7f0000002000 dims 64 70000 300 3 strides 256 17920000 5376000000 " +
          "box 32 16 4 1 steps 1 1 1 1 interleave 0 swizzle 0 promotion 3 fill 0",
      ]);
      driver.freePinned(memory.address);
    });
  });

  test("partitions: disjoint, from the coarse cut where it does and the fine one where not", () => {
    onStream((driver) => {
      const sizes = (wanted: number[]): number[] => {
        const partitions = driver.createPartitions(0, wanted);
        for (const partition of partitions) driver.destroyPartition(partition);
        return partitions.map((partition) => partition.multiprocessors);
      };
      assert.deepEqual(sizes([64, 56]), [64, 56]);
      assert.deepEqual(sizes([1, 17]), [8, 24]);
      assert.deepEqual(sizes([72, 60]), [72, 60], "48 of groups and the 12 over");
      assert.deepEqual(sizes([10, 120]), [12, 120]);
      assert.deepEqual(sizes([66, 66]), [66, 66], "only the fine cut has it");
      assert.deepEqual(sizes([1]), [8]);
      const shared = fake()
        .notes()
        .filter((note) => note.includes("overlapping"));
      assert.deepEqual(shared, []);
    });
  });
});

describe("what fails", { skip }, () => {
  test("a failed call says which, with what code, and what to do", () => {
    const driver = fake().driver();
    using _context = new Context(driver, 0);
    fake().fail("cuStreamCreateWithPriority", 802);
    assert.throws(
      () => driver.createStream(0),
      (e: unknown) => {
        assert.ok(e instanceof CudaError && e instanceof DeviceFailedError);
        assert.equal(e.call, "cuStreamCreateWithPriority");
        assert.equal(e.result, 802);
        assert.equal(e.codeName, "CUDA_ERROR_SYSTEM_NOT_READY");
        assert.match(e.remedy, /fabricmanager/);
        assert.ok(e.message.includes(e.remedy) && e.message.includes(e.codeName));
        assert.equal(e.contextLost, false);
        return true;
      },
    );
    assert.throws(() => driver.free(12345n), /cuMemFree_v2.*CUDA_ERROR_INVALID_VALUE \(1\).*bug/);
    fake().fail("cuMemGetInfo_v2", 12321);
    assert.throws(() => driver.memoryInfo(), /an unknown code \(12321\)/);
  });

  test("a fault that loses the context says so, and lets things be closed", () => {
    const driver = fake().driver();
    using _context = new Context(driver, 0);
    const event = driver.createEvent(false);
    fake().fail("cuEventQuery", 700);
    const lost = (e: unknown): boolean => e instanceof CudaError && e.contextLost;
    assert.throws(() => driver.eventDone(event), lost);
    fake().fail("cuEventDestroy_v2", 700);
    release(() => driver.destroyEvent(event));
    fake().fail("cuEventDestroy_v2", 400);
    assert.throws(() => release(() => driver.destroyEvent(event)), CudaError);
    release(() => driver.destroyEvent(event));
  });

  test("images that the driver must not see, and those it refuses", () => {
    const driver = fake().driver();
    using _context = new Context(driver, 0);
    assert.throws(() => driver.loadModule(Buffer.from("bad ptx line 3\0")), {
      message: /cuModuleLoadDataEx.*CUDA_ERROR_INVALID_PTX.*ptxas fatal: bad ptx line 3/,
    });
    assert.throws(() => driver.loadModule(Buffer.from("no zero")), /no cubin, and no PTX/);
    const module = driver.loadModule(PTX);
    assert.throws(() => driver.getFunction(module, "absent"), /cuModuleGetFunction.*absent/);
    driver.unloadModule(module);
  });

  test("partitions that cannot all be made leave none behind", () => {
    const driver = fake().driver();
    using _context = new Context(driver, 0);
    fake().fail("cuGreenCtxCreate", 2, 1);
    assert.throws(() => driver.createPartitions(0, [8, 8, 8]), CudaError);
    assert.throws(() => driver.createPartitions(0, [132, 2]), {
      message: /\[132, 2\].*15 groups of 8 and 12 more, or 66 groups of 2 and 0 more/,
    });
    assert.throws(() => driver.createPartitions(0, [0.5]), /0\.5/);
  });

  test("a context is retained once and given back once", () => {
    const driver = fake().driver();
    const context = new Context(driver, 0);
    assert.equal(context.closed, false);
    context.close();
    context.close();
    assert.equal(context.closed, true);
    assert.throws(() => context.current(), /closed/);
    assert.throws(() => new Context(driver, 3), CudaError);
  });
});

test("memory of the host that runs out is told from the GPU's", { skip }, () => {
  const driver = fake().driver();
  using _context = new Context(driver, 0);
  fake().fail("cuMemAlloc_v2", 2);
  assert.throws(
    () => driver.allocate(64),
    (error) => error instanceof CudaError && /The GPU is out of memory/.test(error.remedy),
  );
  fake().fail("cuMemHostAlloc", 2);
  assert.throws(
    () => new PinnedMemory(driver, 64, "counts"),
    (error) => {
      assert.ok(error instanceof OutOfDeviceMemoryError, String(error));
      assert.equal(error.requestedBytes, 64);
      assert.match(error.message, /64 bytes for counts in page-locked host memory: .*ulimit -l/);
      return true;
    },
  );
});

describe("drivers that will not do", { skip }, () => {
  test("one from before CUDA 12.0 is refused, with both versions", () => {
    const opened = olderFake(11080).open();
    assert.ok("reason" in opened);
    assert.match(opened.reason, /CUDA 11\.8.*12\.0/);
  });

  test("one that lacks what it should have is refused by name", () => {
    const { library } = olderFake(11080);
    const lying = new FakeCuda({
      ...library,
      path: "liblying.so",
      find: (name, types) => {
        if (name === "cuDriverGetVersion") return fake().library.find(name, types);
        return library.find(name, types);
      },
    });
    const opened = lying.open();
    assert.ok("reason" in opened);
    assert.match(opened.reason, /liblying\.so.*13\.0 but lacks cuInit, /);
  });

  test("a library that is no driver is refused", () => {
    const opened = new FakeCuda({ ...fake().library, path: "libm.so", find: () => null }).open();
    assert.deepEqual(opened, { reason: "libm.so is no CUDA driver: it lacks cuDriverGetVersion" });
  });

  test("a stub made for linking is told from a library that is no driver", () => {
    fake().fail("cuDriverGetVersion", 34);
    const opened = fake().open();
    assert.ok("reason" in opened);
    assert.match(
      opened.reason,
      /libfakecuda.* tells no version: cuDriverGetVersion failed with code \(34\)\. A stub of libcuda .* Remove/,
    );
  });

  test("what a 12.0 driver lacks is missing with a reason, the rest works", () => {
    const old = olderFake(12000);
    const driver = old.driver();
    using context = new Context(driver, 0);
    assert.match(driver.partitionsUnavailable() ?? "", /12\.5.*12\.0/);
    assert.throws(() => driver.createPartitions(0, [8]), DeviceUnavailableError);
    const module = driver.loadModule(PTX);
    const fn = driver.getFunction(module, "kernel");
    assert.equal(driver.functionParameters(fn), null);
    driver.unloadModule(module);
    context.close();
    assert.equal(old.live(), 0);
    assert.match(olderFake(12040).driver().partitionsUnavailable() ?? "", /12\.5.*12\.4/);
  });

  test("no device, with and without CUDA_VISIBLE_DEVICES", () => {
    const visible = process.env["CUDA_VISIBLE_DEVICES"];
    try {
      // The fake reads the environment of C, which Node keeps in step with process.env.
      process.env["CUDA_VISIBLE_DEVICES"] = "";
      const hidden = fake().open();
      assert.ok("reason" in hidden);
      assert.match(hidden.reason, /no GPU is visible: CUDA_VISIBLE_DEVICES is "".*Unset it/);
      delete process.env["CUDA_VISIBLE_DEVICES"];
      fake().fail("cuInit", 100);
      const none = fake().open();
      assert.ok("reason" in none);
      assert.match(none.reason, /cuInit.*CUDA_ERROR_NO_DEVICE \(100\).*nvidia-smi/);
    } finally {
      if (visible === undefined) delete process.env["CUDA_VISIBLE_DEVICES"];
      else process.env["CUDA_VISIBLE_DEVICES"] = visible;
    }
  });
});
