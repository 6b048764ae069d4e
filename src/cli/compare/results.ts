/**
 * Result files that two measurements are compared by: of `nexus bench --json`, and of the
 * benchmark of peers (bench/compare). Read, checked as far as a comparison relies on them,
 * and brought into one form: cells, and in each cell contenders with their times.
 */

import { z } from "zod";
import { readJsonObject } from "../../checkpoint/json.ts";
import { printablePath, quote } from "../../errors/wording.ts";
import { InvalidArgumentError } from "../../errors.ts";
import { plural } from "../terminal/format.ts";
import { timeOf } from "./batches.ts";

const PEERS_FORMAT = "nexus-peers/1";

/** How a contender's times were taken: rounds that lie apart in time, each of samples in order. */
export interface Series {
  readonly contender: string;
  /** How many take turns in every round, as in batches.ts. */
  readonly batches: number;
  /** Microseconds. */
  readonly rounds: readonly (readonly number[])[];
}

export interface MeasuredCell {
  readonly name: string;
  readonly series: readonly Series[];
  /** Contenders without times, and why. */
  readonly failed: readonly { readonly contender: string; readonly reason: string }[];
  /** How far two measurements of Nexus in the same rounds are apart, as a share; absent where it was measured once. */
  readonly noise?: number;
}

export interface Results {
  readonly file: string;
  readonly kind: "peers" | "bench";
  readonly date: string;
  readonly device: string;
  /** Commit or version of what was measured. */
  readonly version: string;
  readonly seed: number;
  /** How Nexus kept the experts' weights: false, true or "beside". */
  readonly packWeights: string;
  readonly cells: readonly MeasuredCell[];
  /** Cells of which nothing was measured, and why. */
  readonly failedCells: readonly { readonly name: string; readonly reason: string }[];
}

/** Results from before there was a choice do not say. */
const packing = z.union([z.boolean(), z.literal("beside")]).default(false);

const times = z.array(z.number().positive()).min(1);
const contenders = z.array(
  z.union([
    z.object({ name: z.string(), failed: z.string(), mode: z.string().optional() }),
    z.object({
      name: z.string(),
      mode: z.string().optional(),
      samples: times,
      rounds: z.array(times).min(1).optional(),
    }),
  ]),
);

const PEERS = z.object({
  date: z.string(),
  commit: z.string(),
  seed: z.number(),
  packWeights: packing,
  device: z.object({ name: z.string(), driver: z.string().optional() }),
  cells: z.array(
    z.object({
      shape: z.string(),
      tokens: z.number(),
      routing: z.string(),
      batches: z.number().int().min(1).default(1),
      /** Why there is nothing of the whole cell. */
      failed: z.string().optional(),
      contenders,
    }),
  ),
});

const rate = z.object({ seconds: z.object({ samples: times }) });

const BENCH = z.object({
  date: z.string(),
  nexus: z.string(),
  seed: z.number(),
  cpu: z.string(),
  options: z.object({ packWeights: packing }).default({ packWeights: false }),
  device: z.object({ kind: z.string(), name: z.string(), driver: z.string().optional() }),
  cells: z.array(
    z.object({
      preset: z.string(),
      dtype: z.string(),
      tokens: z.number(),
      routing: z.string(),
      nexus: rate,
      graph: rate.optional(),
      sequential: rate,
    }),
  ),
});

/** @throws CheckpointError, InvalidArgumentError naming the file and what is wrong with it */
export async function readResults(file: string): Promise<Results> {
  const json = await readJsonObject(file);
  if (json["format"] === PEERS_FORMAT) return distinct(fromPeers(file, parse(file, PEERS, json)));
  if (json["command"] === "bench") return distinct(fromBench(file, parse(file, BENCH, json)));
  const found =
    json["format"] !== undefined
      ? `"format" is ${quote(json["format"])}`
      : json["command"] !== undefined
        ? `"command" is ${quote(json["command"])}`
        : 'it has neither "format" nor "command"';
  throw refused(
    file,
    `${found}. Name results of "nexus bench --json" or of the benchmark of peers (${PEERS_FORMAT}).`,
  );
}

function fromPeers(file: string, json: z.output<typeof PEERS>): Results {
  const { date, commit, seed, packWeights, device, cells } = json;
  return {
    file,
    kind: "peers",
    date,
    seed,
    packWeights: `${packWeights}`,
    version: commit,
    device: deviceText(device),
    cells: cells
      .filter(({ failed }) => failed === undefined)
      .map((cell) => peersCell(cellName(cell), cell.batches, cell.contenders)),
    failedCells: cells.flatMap(({ failed, ...cell }) =>
      failed === undefined ? [] : [{ name: cellName(cell), reason: failed }],
    ),
  };
}

function cellName({ shape, tokens, routing }: { shape: string; tokens: number; routing: string }) {
  return `${shape}, ${plural(tokens, "token")}, ${routing}`;
}

function peersCell(name: string, batches: number, all: z.output<typeof contenders>): MeasuredCell {
  const labelOf = (contender: string, mode = "graph") =>
    mode === "graph" ? contender : `${contender} (${mode})`;
  const series: Series[] = [];
  const failed: { contender: string; reason: string }[] = [];
  for (const each of all) {
    const contender = labelOf(each.name, each.mode);
    if ("failed" in each) failed.push({ contender, reason: each.failed });
    else series.push({ contender, batches, rounds: each.rounds ?? [each.samples] });
  }
  // Nexus measured twice is no contender of its own; it tells the noise.
  const isAgain = ({ contender }: Series) => contender.startsWith("nexus-again");
  const again = series.find(isAgain);
  const nexus = series.find(
    ({ contender }) => contender === again?.contender.replace("-again", ""),
  );
  return {
    name,
    failed,
    series: series.filter((each) => !isAgain(each)),
    ...(again && nexus && { noise: Math.abs(timeOf(again) / timeOf(nexus) - 1) }),
  };
}

function fromBench(file: string, json: z.output<typeof BENCH>): Results {
  const { date, nexus, seed, cpu, options, device, cells } = json;
  const series = (contender: string, { seconds }: z.output<typeof rate>): Series => ({
    contender,
    batches: 1,
    rounds: [seconds.samples.map((each) => each * 1e6)],
  });
  return {
    file,
    kind: "bench",
    date,
    seed,
    packWeights: `${options.packWeights}`,
    version: nexus,
    device: device.kind === "cpu" ? `${deviceText(device)} (${cpu})` : deviceText(device),
    cells: cells.map(({ preset, dtype, tokens, routing, ...cell }) => ({
      name: `${preset} (${dtype}), ${plural(tokens, "token")}, ${routing}`,
      series: [
        series("nexus", cell.nexus),
        ...(cell.graph ? [series("graph", cell.graph)] : []),
        series("loop", cell.sequential),
      ],
      failed: [],
    })),
    failedCells: [],
  };
}

function deviceText({ name, driver }: { name: string; driver?: string | undefined }): string {
  return driver === undefined ? name : `${name}, driver ${driver}`;
}

/** Cells and contenders are matched by name, so no name may occur twice. */
function distinct(results: Results): Results {
  const { file, cells } = results;
  const twice = repeated(cells.map(({ name }) => name));
  if (twice !== undefined) throw refused(file, `holds the cell ${quote(twice)} twice.`);
  for (const { name, series } of cells) {
    const contender = repeated(series.map((each) => each.contender));
    if (contender === undefined) continue;
    throw refused(file, `the cell ${quote(name)} holds ${quote(contender)} twice.`);
  }
  return results;
}

function repeated(names: readonly string[]): string | undefined {
  return names.find((name, i) => names.indexOf(name) !== i);
}

function parse<S extends z.ZodType>(file: string, schema: S, json: object): z.output<S> {
  const result = schema.safeParse(json);
  if (result.success) return result.data;
  const [issue] = result.error.issues;
  const where = (issue?.path ?? []).map((key) =>
    typeof key === "number" ? `[${key}]` : `.${String(key)}`,
  );
  throw refused(file, `${quote(where.join("").slice(1))}: ${quote(issue?.message)}.`);
}

function refused(file: string, message: string): InvalidArgumentError {
  return new InvalidArgumentError(`${printablePath(file)}: ${message}`);
}
