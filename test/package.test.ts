/**
 * The package as a user gets it: packed, installed into an empty project without
 * any network, imported by its name and run from the command line.
 *
 * The dependencies are packed from node_modules beside it, so that no registry is
 * asked; one that package.json forgets is then missing in the project too. Needs
 * npm, and is skipped where there is none.
 */

import assert from "node:assert/strict";
import { type SpawnSyncReturns, spawnSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { after, before, describe, it } from "node:test";
import { fileURLToPath } from "node:url";

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../..");

interface Manifest {
  readonly name: string;
  readonly scripts?: Record<string, string>;
  readonly dependencies: Record<string, string>;
}

const manifest: Manifest = JSON.parse(readFileSync(path.join(root, "package.json"), "utf8"));

/** What npm runs in a package that is being installed. */
const INSTALL_SCRIPTS = ["preinstall", "install", "postinstall", "prepare"];

function run(command: string, args: readonly string[], cwd: string): SpawnSyncReturns<string> {
  return spawnSync(command, args, { cwd, encoding: "utf8", shell: process.platform === "win32" });
}

function succeed(command: string, args: readonly string[], cwd: string): string {
  const { status, stdout, stderr, error } = run(command, args, cwd);
  assert.equal(status, 0, `${command} ${args.join(" ")}: ${error?.message ?? stdout + stderr}`);
  return stdout;
}

interface Packed {
  readonly filename: string;
  readonly files: readonly { readonly path: string }[];
}

/** Packs folders as they stand: a build from inside a test would pull dist/ from under the others. */
function pack(folders: readonly string[], destination: string): Packed[] {
  const options = ["--ignore-scripts", "--json", "--pack-destination", destination];
  return JSON.parse(succeed("npm", ["pack", ...options, ...folders], root));
}

function whyNot(): string | false {
  if (run("npm", ["--version"], root).status !== 0) return "npm is not installed here";
  if (!existsSync(path.join(root, "dist/src/index.js"))) return `no build in ${root}`;
  return false;
}

/** What a user writes: a layer of four experts on three tokens. */
const CONSUMER = `
import assert from "node:assert/strict";
import { MoELayer } from "nexus-moe";

const tensor = (...shape) => ({
  shape,
  data: new Float32Array(shape.reduce((a, b) => a * b)).map((_, i) => Math.sin(i)),
});
const spec = {
  hiddenSize: 8,
  router: { experts: 4, topK: 2, rule: { scoring: "softmax", renormalize: true, scale: 1 } },
  experts: {
    form: "gated",
    hiddenSize: 8,
    intermediateSize: 16,
    activation: { kind: "silu" },
    bias: false,
    dtype: "float32",
  },
  aggregation: { mode: "sum", weightsApplyTo: "output", residual: false },
};
const layer = new MoELayer(spec, {
  gate: tensor(4, 8),
  experts: { gate: tensor(4, 16, 8), up: tensor(4, 16, 8), down: tensor(4, 8, 16) },
});
const { output, stats } = await layer.forward(tensor(3, 8));
await layer[Symbol.asyncDispose]();
assert.deepEqual(output.shape, [3, 8]);
assert.ok(output.data.every(Number.isFinite));
assert.ok(output.data.some((value) => value !== 0));
assert.equal(stats.counts.reduce((a, b) => a + b), 3 * 2);
console.log("forward done");
`;

/** The same in TypeScript, with the parts by themselves, as strict as a consumer can be. */
const TYPED_CONSUMER = `
import { Experts, type ExpertsSpec, openDevice, Router, type Routing, SliceManager, schedule } from "nexus-moe";

const tensor = (...shape: number[]) => ({ shape, data: new Float32Array(shape.reduce((a, b) => a * b)) });
const spec: ExpertsSpec = {
  form: "gated",
  hiddenSize: 8,
  intermediateSize: 16,
  activation: { kind: "silu" },
  bias: false,
  dtype: "float32",
};
await using device = await openDevice({ threads: 1 });
using router = new Router({ topK: 2, device });
const weights = { gate: tensor(4, 16, 8), up: tensor(4, 16, 8), down: tensor(4, 8, 16) };
using experts = await Experts.fromTensors(spec, 4, weights, { device });
const buckets = await router.route(tensor(3, 8), tensor(3, 4));
const plan = new SliceManager({ device: device.properties }).allocate(buckets);
const { output } = await schedule(plan, experts).run();
const data: Float32Array = output.data;
const ids: Routing["ids"] = buckets.ids;
console.log(data.length, ids.length, plan.explain(3).reason);
`;

/** What it exports beside types. */
const EXPORTS = [
  "AdaptivePolicy",
  "Buckets",
  "CheckpointError",
  "DeviceFailedError",
  "DeviceTensor",
  "DeviceUnavailableError",
  "DisposedError",
  "DynamicPolicy",
  "EnergyMonitor",
  "ExpertProfiler",
  "Experts",
  "GraphManager",
  "InvalidArgumentError",
  "InvalidLogitsError",
  "MigPool",
  "MigWorker",
  "MoELayer",
  "NexusError",
  "OutOfDeviceMemoryError",
  "ProportionalPolicy",
  "Router",
  "SafetensorsFile",
  "ShapeError",
  "SliceManager",
  "StaticPolicy",
  "StreamScheduler",
  "UnpackableWeightsError",
  "defaultDevice",
  "listMigInstances",
  "openDevice",
  "openMigPool",
  "placeByHeat",
  "schedule",
  "weighByWork",
  "writeSafetensors",
];

const CONSUMER_CONFIG = {
  compilerOptions: {
    module: "NodeNext",
    target: "ES2022",
    lib: ["ES2023"],
    types: ["node"],
    strict: true,
    skipLibCheck: false,
    noEmit: true,
  },
  files: ["typed.ts"],
};

/** Development tools are not packed; the consumer's compiler and Node types are the ones here. */
const compiler = path.join(root, "node_modules/typescript/bin/tsc");
const nodeTypes = path.join(root, "node_modules/@types");
const hasCompiler = existsSync(compiler) && existsSync(path.join(nodeTypes, "node"));

describe("the package", { skip: whyNot() }, () => {
  let folder: string;
  let project: string;
  let packed: Packed;

  before(() => {
    folder = mkdtempSync(path.join(tmpdir(), "nexus-package-"));
    project = path.join(folder, "project");
    mkdirSync(project);
    writeFileSync(path.join(project, "package.json"), '{ "private": true, "type": "module" }\n');
    writeFileSync(path.join(project, "forward.js"), CONSUMER);
    const dependencies = Object.keys(manifest.dependencies);
    const all = pack([".", ...dependencies.map((name) => `./node_modules/${name}`)], folder);
    packed = all[0] as Packed;
    const tarballs = all.map(({ filename }) => path.join(folder, filename));
    // An empty cache, so that nothing can come from anywhere but the tarballs.
    const offline = ["--offline", "--cache", path.join(folder, "cache")];
    succeed("npm", ["install", ...offline, "--no-audit", "--no-fund", ...tarballs], project);
  });

  after(() => rmSync(folder, { recursive: true, force: true }));

  it("holds the built sources and the kernels, and nothing of the tests", () => {
    const files = packed.files.map((file) => file.path);
    for (const needed of ["package.json", "README.md", "LICENSE", "dist/src/index.js"]) {
      assert.ok(files.includes(needed), `no ${needed}`);
    }
    assert.ok(files.includes("kernels/bundle/manifest.json"), "no kernels/bundle/manifest.json");
    for (const kernels of ["kernels.simd.wasm", "kernels.relaxed.wasm"]) {
      assert.ok(files.includes(`dist/src/execution/cpu/${kernels}`), `no ${kernels}`);
    }
    const stray = files.filter(
      (file) => !/^(dist\/src|docs|kernels\/bundle)\/|^[^/]+$/.test(file) || /\btest\b/.test(file),
    );
    assert.deepEqual(stray, []);
  });

  it("installs nothing but itself and its dependencies", () => {
    const lock = JSON.parse(readFileSync(path.join(project, "package-lock.json"), "utf8"));
    const installed = Object.keys(lock.packages).filter((entry) => entry !== "");
    const wanted = [manifest.name, ...Object.keys(manifest.dependencies)];
    assert.deepEqual(installed.sort(), wanted.map((name) => `node_modules/${name}`).sort());
  });

  it("runs a layer when imported by its name", () => {
    assert.match(succeed(process.execPath, ["forward.js"], project), /forward done/);
  });

  it("exports what is meant for users by name, and nothing else", () => {
    const program = 'console.log(JSON.stringify(Object.keys(await import("nexus-moe"))))';
    const names = succeed(process.execPath, ["--input-type=module", "--eval", program], project);
    assert.deepEqual(JSON.parse(names).sort(), [...EXPORTS].sort());
  });

  it("compiles in a strict project that checks declarations too", {
    skip: hasCompiler ? false : "typescript and @types/node are not installed here",
  }, () => {
    const { compilerOptions, files } = CONSUMER_CONFIG;
    const config = { compilerOptions: { ...compilerOptions, typeRoots: [nodeTypes] }, files };
    writeFileSync(path.join(project, "tsconfig.json"), JSON.stringify(config));
    writeFileSync(path.join(project, "typed.ts"), TYPED_CONSUMER);
    succeed(process.execPath, [compiler, "-p", "."], project);
  });

  it("can be run from the clone by npx, which expects the program to be executable", {
    skip: process.platform === "win32" && "Windows has no such permission",
  }, () => {
    assert.equal(statSync(path.join(root, "dist/src/cli/main.js")).mode & 0o111, 0o111);
  });

  it("runs from the command line", () => {
    const report = JSON.parse(succeed("npx", ["--no", "nexus", "doctor", "--json"], project));
    assert.equal(report.canRun, true);
  });
});

describe("install scripts", () => {
  it("has none of its own", () => {
    const scripts = Object.keys(manifest.scripts ?? {});
    assert.deepEqual(
      scripts.filter((script) => INSTALL_SCRIPTS.includes(script)),
      [],
    );
    // npm compiles any package that has this file.
    assert.ok(!existsSync(path.join(root, "binding.gyp")));
  });

  const lockFile = path.join(root, "package-lock.json");
  it("has none among its dependencies", {
    skip: existsSync(lockFile) ? false : "no package-lock.json here",
  }, () => {
    const { packages } = JSON.parse(readFileSync(lockFile, "utf8")) as {
      packages: Record<string, { hasInstallScript?: boolean }>;
    };
    assert.ok(Object.keys(packages).length > 1);
    const withScript = Object.entries(packages).filter(([, entry]) => entry.hasInstallScript);
    assert.deepEqual(
      withScript.map(([name]) => name),
      [],
    );
  });
});
