/** The doctor's two forms of output and its exit code. What it reports is tested with the probes. */

import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { describe, it } from "node:test";
import { runDoctor } from "../../src/cli/doctor.ts";
import { type MachineReport, probeMachine } from "../../src/execution/probe.ts";
import { inTemporaryFolder, nexus, type Outcome } from "./nexus.ts";

const report: MachineReport = {
  canRun: true,
  summary: "Nexus runs here.",
  checks: [
    { name: "CPU", status: "ok", found: "a processor", use: "the CPU device" },
    {
      name: "CUDA_VISIBLE_DEVICES",
      status: "missing",
      found: "words ".repeat(30).trim(),
      use: "nothing",
      remedy: "Set it to something that takes more than one line to write down here.",
    },
  ],
};

function output(json: boolean, shown: MachineReport): { text: string; code: number } {
  let text = "";
  const stdout = { write: (part: string) => (text += part) };
  const code = runDoctor({ json, stdout }, shown);
  return { text, code };
}

/** Lines are broken at blanks and inside of words that are too long. */
const withoutBlanks = (text: string) => text.replace(/\s+/g, "");

describe("nexus doctor", () => {
  it("prints found, use and fix beside each name", () => {
    const { text, code } = output(false, report);
    assert.equal(code, 0);
    const lines = text.split("\n");
    assert.match(lines[0] ?? "", /^ok {7}CPU {19}a processor$/);
    assert.match(lines[1] ?? "", /^ {31}use: the CPU device$/);
    assert.equal(text.match(/fix: /g)?.length, 1);
    assert.ok(text.endsWith("\n\nNexus runs here.\n"));
  });

  it("keeps to 80 columns, loses no word and leaves no blanks at line ends", async () => {
    const long = {
      ...report,
      summary: "Nexus runs here, no CUDA because of much. ".repeat(4).trim(),
    };
    for (const shown of [report, long, await probeMachine()]) {
      const { text } = output(false, shown);
      for (const line of text.split("\n")) {
        assert.ok(line.length <= 80, line);
        assert.ok(!line.endsWith(" "), line);
      }
      const flowing = withoutBlanks(text);
      for (const { found, use, remedy = "" } of shown.checks) {
        const fix = remedy === "" ? "" : `fix: ${remedy}`;
        assert.ok(flowing.includes(withoutBlanks(`${found}use: ${use}${fix}`)), found);
      }
    }
  });

  it("prints the raw report with --json", () => {
    const { text, code } = output(true, report);
    assert.deepEqual(JSON.parse(text), report);
    assert.equal(code, 0);
  });

  it("looks at this machine as a command", async () => {
    const { code, stdout, stderr } = await nexus(["doctor", "--json"]);
    assert.deepEqual([code, stderr], [0, ""]);
    const { checks, summary } = JSON.parse(stdout) as MachineReport;
    assert.match(summary, /^Nexus runs here on the (CPU|GPU): /);
    for (const name of ["Node.js", "CPU", "native calls", "CUDA library", "NVML", "MIG"]) {
      assert.ok(
        checks.some((check) => check.name === name),
        name,
      );
    }
  });

  it("looks at one device where one is asked for, and fails where it is not there", async () => {
    const noGpu = { CUDA_VISIBLE_DEVICES: "" };
    const [cpu, cuda, auto] = await Promise.all(
      ["cpu", "cuda", "auto"].map((device) =>
        nexus(["doctor", "--json", "--device", device], noGpu),
      ),
    );
    assert.ok(cpu && cuda && auto);
    const said = ({ stdout }: Outcome) => JSON.parse(stdout) as MachineReport;
    const names = (outcome: Outcome) => said(outcome).checks.map((check) => check.name);
    assert.deepEqual([cpu.code, cuda.code, auto.code], [0, 1, 0]);
    assert.equal(`${cpu.stderr}${cuda.stderr}${auto.stderr}`, "");
    assert.deepEqual([said(cpu).canRun, said(cuda).canRun], [true, false]);
    assert.match(
      said(cpu).summary,
      /^Nexus runs here on the CPU: \d+ threads?, \w+ SIMD kernels\.$/,
    );
    assert.match(said(cuda).summary, /^Nexus cannot run here on a GPU because .+\.$/);
    // Node.js is in both.
    assert.deepEqual([...names(cpu), ...names(cuda).slice(1)], names(auto));
  });

  it("starts no process for the GPU where only the CPU is asked for", async () => {
    const processes = (device: string) =>
      inTemporaryFolder(async (folder) => {
        // Every process leaves its id.
        const mark = `import fs from "node:fs"; fs.writeFileSync(${JSON.stringify(`${folder}/`)} + process.pid, "");`;
        const options = `--import=data:text/javascript,${encodeURIComponent(mark)}`;
        const outcome = await nexus(["doctor", "--device", device], { NODE_OPTIONS: options });
        assert.deepEqual([outcome.code, outcome.stderr], [0, ""]);
        return readdirSync(folder).length;
      });
    assert.deepEqual([await processes("auto"), await processes("cpu")], [2, 1]);
  });

  it("exits with 1 only where Nexus cannot run", () => {
    assert.equal(output(false, { ...report, canRun: false }).code, 1);
    assert.equal(output(true, { ...report, canRun: false }).code, 1);
  });
});
