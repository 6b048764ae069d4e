/**
 * A Python with the Triton that the kernels are compiled with, and the build run by it.
 *
 * Only for those who work on the kernels: neither installing nor running the package
 * needs Python. Looked at in this order: $NEXUS_PYTHON, the virtual environment that an
 * earlier run made, python3. If none has the right Triton, that virtual
 * environment is made, beside this file, and Triton installed into it from the package registry.
 */

import { spawnSync } from "node:child_process";
import { existsSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const KERNELS = fileURLToPath(new URL(".", import.meta.url));
const BUILD = join(KERNELS, "triton", "build.py");
const PTX_CHECKS = join(KERNELS, "triton", "test_ptx_checks.py");
const ENVIRONMENT = join(KERNELS, ".venv");
const ENVIRONMENT_PYTHON = join(ENVIRONMENT, "bin", "python");

/** There is no Python, Triton could not be installed, or its output is not the same every time here. */
export class BuildNotPossible extends Error {}

/** With --like, build.py ends with this where its bytes may differ from run to run. */
const NOT_EXACT = 3;

/** As build.py says. */
export function tritonVersion() {
  return /^TRITON_VERSION = "(.+)"$/m.exec(readFileSync(BUILD, "utf8"))[1];
}

function has(python, version) {
  const asked = spawnSync(python, ["-c", "import triton; print(triton.__version__)"], {
    encoding: "utf8",
  });
  return asked.status === 0 && asked.stdout.trim() === version;
}

/** Path or name of a Python that has it. @throws BuildNotPossible */
export function pythonWithTriton() {
  const version = tritonVersion();
  const own = process.env["NEXUS_PYTHON"];
  const candidates = [...(own ? [own] : []), ENVIRONMENT_PYTHON, "python3"];
  const found = candidates.find((python) => has(python, version));
  return found ?? install(own ?? "python3", version);
}

function install(python, version) {
  if (spawnSync(python, ["--version"]).status !== 0) {
    throw new BuildNotPossible(
      `No Python 3: ${python} does not run. Install it, or set NEXUS_PYTHON to one.`,
    );
  }
  console.log(`installing triton ${version} into ${ENVIRONMENT}`);
  if (!existsSync(ENVIRONMENT_PYTHON)) run(python, ["-m", "venv", ENVIRONMENT]);
  run(ENVIRONMENT_PYTHON, ["-m", "pip", "install", "--quiet", `triton==${version}`]);
  if (has(ENVIRONMENT_PYTHON, version)) return ENVIRONMENT_PYTHON;
  throw new BuildNotPossible(
    `triton ${version} was installed into ${ENVIRONMENT} but cannot be imported.`,
  );
}

function run(command, args) {
  const { status } = spawnSync(command, args, { stdio: ["ignore", "inherit", "inherit"] });
  if (status === 0) return;
  // Half an environment would be taken for a whole one the next time.
  rmSync(ENVIRONMENT, { recursive: true, force: true });
  throw new BuildNotPossible(
    `${[command, ...args].join(" ")} failed: no virtual environment or no package registry.`,
  );
}

/**
 * Compiles all kernels into `folder`.
 *
 * @param like a packed manifest whose images the bytes must be able to be, wherever it was made
 * @throws BuildNotPossible
 */
export function build(folder, { jobs, like }) {
  const args = [BUILD, "--out", folder];
  if (jobs !== undefined) args.push("--jobs", jobs);
  if (like !== undefined) args.push("--like", like);
  const python = pythonWithTriton();
  // What it relies on to refuse a kernel.
  if (spawnSync(python, [PTX_CHECKS], { stdio: "inherit" }).status !== 0) {
    throw new Error("kernels/triton/test_ptx_checks.py failed");
  }
  const { status } = spawnSync(python, args, { stdio: "inherit" });
  if (status === NOT_EXACT) throw new BuildNotPossible("the build is not exact here");
  if (status !== 0) throw new Error(`kernels/triton/build.py failed (${status})`);
}
