/**
 * Runs a program under Nsight Compute (ncu): the raw page of its kernels, and what it printed.
 *
 * Every pass over a kernel begins with empty caches (`--cache-control all`), at whatever clock the
 * card has (`--clock-control none`: clocks are not always ours to lock, and a locked one is not
 * what anybody runs at). Whoever reports says what that means for the figures.
 */

import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { readPage } from "./page.mjs";

/** No kernel was counted. */
export class ProfileError extends Error {
  /** All that ncu and the program had to say. */
  output;

  constructor(command, output) {
    super(`No counters of ${command.join(" ")}:\n${output}`);
    this.output = output;
  }
}

/** @returns { ncu: how to call it, version } @throws Error if it is not installed */
export function findNcu() {
  const inside = (folder, ncu) =>
    existsSync(folder) ? readdirSync(folder).map((each) => path.join(folder, each, ncu)) : [];
  const places = [
    ...inside("/usr/local", "bin/ncu"),
    ...inside("/opt/nvidia/nsight-compute", "ncu"),
  ];
  for (const ncu of ["ncu", ...places]) {
    const { status, stdout } = spawnSync(ncu, ["--version"], { encoding: "utf8" });
    if (status === 0) return { ncu, version: /Version (\S+)/.exec(stdout)?.[1] ?? stdout.trim() };
  }
  throw new Error("Nsight Compute (ncu) is not installed here.");
}

/**
 * @param metrics what is counted
 * @param selection options that choose the kernels
 * @param command a program and its arguments; the last line that it prints as JSON is what it said
 * @returns { page: what page.mjs reads, said }
 * @throws ProfileError
 */
export function profile(ncu, { metrics, selection, command }) {
  const folder = mkdtempSync(path.join(tmpdir(), "nexus-ncu-"));
  const log = path.join(folder, "ncu.csv");
  try {
    const { status, stdout, stderr } = spawnSync(
      ncu,
      [
        "--csv",
        "--page",
        "raw",
        "--print-units",
        "base",
        "--log-file",
        log,
        "--cache-control",
        "all",
        "--clock-control",
        "none",
        "--target-processes",
        "all",
        "--metrics",
        metrics.join(","),
        ...selection,
        ...command,
      ],
      { encoding: "utf8", maxBuffer: 1 << 28 },
    );
    const page = existsSync(log) ? readFileSync(log, "utf8") : "";
    if (status !== 0 || readPage(page).length === 0) {
      const notes = page.split("\n").filter((line) => line.startsWith("=="));
      throw new ProfileError(command, [...notes, stdout, stderr].join("\n"));
    }
    return { page, said: JSON.parse(stdout.split("\n").findLast((line) => line.startsWith("{"))) };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/**
 * Which of the metrics asked for ncu says that it does not know, and in which words. It refuses a
 * whole run over one of them, and may quote it as a regular expression, without its ending.
 *
 * @param output of a ProfileError
 * @returns {{ metric: string, reason: string }[]}
 */
export function unknownMetrics(output, metrics) {
  const lines = output
    .split("\n")
    .filter((line) => /^==(ERROR|WARNING)==/.test(line) && /metric/i.test(line));
  return lines.flatMap((line) => {
    const words = line.replaceAll("\\", "");
    const inFull = metrics.filter((metric) => mentions(words, metric));
    const named =
      inFull.length > 0
        ? inFull
        : metrics.filter((metric) => mentions(words, metric.split(".")[0]));
    return named.map((metric) => ({ metric, reason: line.trim() }));
  });
}

/** Whether a name stands in the text, and not as a part of a longer one. */
function mentions(text, name) {
  const escaped = name.replaceAll(".", "\\.");
  return new RegExp(`(?<![\\w.])${escaped}(?!\\w|\\.\\w)`).test(text);
}
