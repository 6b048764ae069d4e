/**
 * Has the GPU tried out in a process of its own, because a driver that does not
 * fit its GPU or kernel module may crash whoever calls it, or hang for good.
 */

import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import type { GpuFindings, ProbeLine } from "./gpu-findings.ts";

/** Without persistence mode a driver starts each GPU anew, at 1 to 3 s apiece, and there are up to 16. */
const PATIENCE_SECONDS = 60;

const TRIAL = new URL("./gpu-trial.js", import.meta.url);

/**
 * What trying the GPU out has shown. Never rejects; takes as long as starting the driver does.
 *
 * @param trial the module that tries
 * @param patienceSeconds after which it is ended
 */
export function tryGpu(
  trial: URL = TRIAL,
  patienceSeconds: number = PATIENCE_SECONDS,
): Promise<GpuFindings> {
  return new Promise((resolve) => {
    let findings: GpuFindings = {};
    let during = "starting";
    const child = spawn(process.execPath, [fileURLToPath(trial)], {
      stdio: ["ignore", "pipe", "ignore"],
    });
    const end = (how: string | null) => {
      clearTimeout(timer);
      // A process that sleeps in the driver takes no signal; it must not hold this one up.
      child.unref();
      child.stdout.destroy();
      resolve(how === null ? findings : { ...findings, stopped: { during, how } });
    };
    const timer = setTimeout(() => {
      child.kill("SIGKILL");
      end(`did not return within ${patienceSeconds} s`);
    }, patienceSeconds * 1e3);
    createInterface({ input: child.stdout }).on("line", (line) => {
      const said = parseLine(line);
      if (said === null) return;
      if ("during" in said) during = said.during;
      else findings = { ...findings, ...said.found };
    });
    child.on("error", (error) => end(`could not be started: ${error.message}`));
    // Not "exit": there may be lines still to read.
    child.on("close", (code, signal) => {
      if (signal !== null) end(`was ended by ${signal}`);
      else end(code === 0 ? null : `ended with exit code ${code}`);
    });
  });
}

/** Null for what a library prints in between. */
function parseLine(line: string): ProbeLine | null {
  try {
    const value: unknown = JSON.parse(line);
    return typeof value === "object" ? (value as ProbeLine | null) : null;
  } catch {
    return null;
  }
}
