/**
 * `nexus doctor`: what this machine has, what Nexus uses of it, and the remedy
 * for each thing that is missing. Only the formatting is here; the findings are
 * execution/probe.ts's.
 */

import type { Check, MachineReport } from "../execution/probe.ts";
import { LINE_WIDTH, wrap } from "./terminal/format.ts";

/** Room for the longest name and the longest status, and a gap after each. */
const NAME_COLUMNS = "CUDA_VISIBLE_DEVICES".length + 2;
const STATUS_COLUMNS = "missing".length + 2;

export interface DoctorOptions {
  /** Print the report as JSON, for machines. */
  readonly json: boolean;
  readonly stdout: { write(text: string): unknown };
}

/**
 * Prints the report.
 *
 * @returns the exit code: 0 if Nexus can run here, on whatever device or on the one asked for; 1 if it cannot
 */
export function runDoctor(options: DoctorOptions, report: MachineReport): 0 | 1 {
  const text = options.json ? JSON.stringify(report, null, 2) : formatReport(report);
  options.stdout.write(`${text}\n`);
  return report.canRun ? 0 : 1;
}

function formatReport(report: MachineReport): string {
  const summary = wrap(report.summary).join("\n");
  return [...report.checks.map(formatCheck), summary].join("\n\n");
}

function formatCheck(check: Check): string {
  const head = check.status.padEnd(STATUS_COLUMNS) + check.name.padEnd(NAME_COLUMNS);
  const margin = " ".repeat(head.length);
  const texts = [check.found, `use: ${check.use}`];
  if (check.remedy !== undefined) texts.push(`fix: ${check.remedy}`);
  return texts
    .flatMap((text) => wrap(text, { width: LINE_WIDTH - head.length }))
    .map((line, i) => (i === 0 ? head : margin) + line)
    .join("\n");
}
