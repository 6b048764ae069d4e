/**
 * Result files of the peer benchmark, and of the measurements that a report may show beside
 * it: read, and checked as far as the report relies on them. merge.mjs joins them.
 */

import { readFileSync } from "node:fs";

export const FORMAT = "nexus-peers/1";
/** Other files that a report may hold, by what they say they are, and the list in each that matters. */
const BESIDE = {
  "nexus-drift/1": { kind: "drifts", list: "forms" },
  "nexus-traffic/1": { kind: "traffics", list: "rows" },
  "nexus-counters/1": { kind: "counters", list: "cells" },
  "bench --ablation": { kind: "ablations", list: "results" },
};

const KNOWN = [FORMAT, ...Object.keys(BESIDE)].join(", ");

/** A result file that cannot be reported on. The message names the file. */
export class ResultError extends Error {}

/**
 * The results in some files, and the names of those files that hold something else: a benchmark leaves other files, too,
 * which have no place in a report.
 *
 * @throws ResultError if a file cannot be read, if a result is faulty, or if there is none
 */
export function readResults(files) {
  const read = files.map((file) => ({ file, result: parsed(file) }));
  const known = read.filter(({ result }) => isKnown(result));
  if (known.length === 0) {
    throw new ResultError(`None of the files is one of ${KNOWN}: ${files.join(", ")}.`);
  }
  for (const { file, result } of known) {
    const fault = faultOf(result);
    if (fault !== undefined) throw new ResultError(`${file}: ${fault}`);
  }
  const others = read.filter(({ result }) => !isKnown(result));
  return { results: known.map(({ result }) => result), others: others.map(({ file }) => file) };
}

function parsed(file) {
  try {
    return JSON.parse(readFileSync(file, "utf8"));
  } catch (cause) {
    // The parser's message quotes the file, line ends and all.
    const why = cause.message.replace(/\s+/g, " ");
    throw new ResultError(`${file} cannot be read as JSON: ${why}`, { cause });
  }
}

function isKnown(result) {
  return result?.format === FORMAT || kindOf(result) !== undefined;
}

/** Where a file of another measurement belongs in a report; undefined for results beside peers. */
export function kindOf(result) {
  return BESIDE[result?.format ?? result?.command]?.kind;
}

/** What is wrong with a file's content, or undefined. */
export function faultOf(result) {
  const beside = BESIDE[result?.format ?? result?.command];
  if (!isKnown(result)) {
    return `it is none of ${KNOWN}: "format" is ${JSON.stringify(result?.format)}.`;
  }
  if (typeof result.device?.name !== "string") return "device.name is missing.";
  return beside === undefined ? faultOfPeers(result) : faultOfList(result, beside.list);
}

function faultOfPeers(result) {
  if (typeof result.date !== "string") return "date is not a text.";
  const { copyTBs, matrixTFlops, dataSheetTBs, dataSheetTFlops = null } = result.limits ?? {};
  if (!isPositive(copyTBs)) return "limits.copyTBs is not a positive number.";
  if (!isPositive(matrixTFlops)) return "limits.matrixTFlops is not a positive number.";
  if (dataSheetTBs !== null && !isPositive(dataSheetTBs)) {
    return "limits.dataSheetTBs is neither a positive number nor null.";
  }
  if (dataSheetTFlops !== null && !isPositive(dataSheetTFlops)) {
    return "limits.dataSheetTFlops is neither a positive number nor null.";
  }
  for (const list of ["shapes", "cells"]) {
    const fault = faultOfList(result, list);
    if (fault !== undefined) return fault;
  }
  for (const [i, cell] of result.cells.entries()) {
    const fault = faultOfCell(cell);
    if (fault !== undefined) return `cells[${i}]${fault}`;
  }
  return undefined;
}

const faultOfList = (result, list) =>
  Array.isArray(result[list]) ? undefined : `${list} is not a list.`;

function faultOfCell(cell) {
  for (const key of ["shape", "routing"]) {
    if (typeof cell[key] !== "string") return `.${key} is not a text.`;
  }
  if (cell.failed !== undefined) return undefined;
  for (const key of ["tokens", "weightBytes", "gflop"]) {
    if (!isPositive(cell[key])) return `.${key} is not a positive number.`;
  }
  const { batches = 1, limit } = cell;
  if (!(Number.isInteger(batches) && batches > 0))
    return ".batches is not a positive whole number.";
  const fault = limit && faultOfTimes(limit);
  if (fault !== undefined) return `.limit${fault}`;
  return faultOfContenders(cell.contenders);
}

function faultOfContenders(contenders) {
  if (!Array.isArray(contenders)) return ".contenders is not a list.";
  const seen = new Set();
  for (const [i, contender] of contenders.entries()) {
    const { name, mode, failed } = contender;
    if (typeof name !== "string") return `.contenders[${i}].name is not a text.`;
    if (failed !== undefined) continue;
    const fault = faultOfTimes(contender);
    if (fault !== undefined) return `.contenders[${i}]${fault}`;
    const key = `${name}, ${mode}`;
    if (seen.has(key)) return `.contenders holds ${key} twice.`;
    seen.add(key);
  }
  return undefined;
}

function faultOfTimes({ samples, rounds = [samples] }) {
  if (!isSamples(samples)) return ".samples is not a list of times.";
  const isRounds = Array.isArray(rounds) && rounds.length > 0 && rounds.every(isSamples);
  return isRounds ? undefined : ".rounds is not a list of lists of times.";
}

const isPositive = (value) => Number.isFinite(value) && value > 0;
const isSamples = (value) => Array.isArray(value) && value.length > 0 && value.every(isPositive);
