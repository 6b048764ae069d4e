/** One cell: inputs drawn, every output checked, everybody timed in turn, and energy where asked for. */

import { median } from "../gpu/support.mjs";
import { energyOf } from "./energy.mjs";
import { NexusContender } from "./nexus.mjs";
import { Refused } from "./options.mjs";
import { takeTurns } from "./rounds.mjs";

/** Batches that take turns: enough that a step's experts are not in the cache from the replay before. */
const batchesFor = (tokens) => (tokens <= 4 ? 16 : tokens <= 64 ? 4 : tokens < 1024 ? 2 : 1);
/** The same contender under two names: what they differ by is noise. */
const AGAIN = "nexus-again";

/**
 * @param site { peers, synthetic, device, folder, seed, rounds, idleWatts }
 * @returns { cell, energy: [] }
 */
export async function measureCell(site, shape, { tokens, routing, energy }, chosen) {
  const { peers, synthetic, folder, seed } = site;
  const batches = batchesFor(tokens);
  const drawn = await peers.ask("cell", {
    tokens,
    routing,
    batches,
    seed,
    folder,
    ...(chosen && { peers: chosen }),
  });
  const nexus = await NexusContender.make(synthetic, { tokens, batches, folder });
  try {
    return await measureReady(site, shape, { tokens, routing, energy, batches }, { nexus, drawn });
  } finally {
    nexus[Symbol.dispose]();
  }
}

async function measureReady(site, shape, { tokens, routing, energy, batches }, { nexus, drawn }) {
  const { peers, folder, seed } = site;
  const files = await nexus.outputs(folder);
  const { right, ...errors } = await peers.ask("check", { files });
  if (!right) {
    const off = `${errors.relativeError ?? "infinitely"}, a token's by ${errors.rowError ?? "infinitely"}`;
    throw new Error(`Nexus is off from float64 by ${off}`);
  }
  const ours = { mode: "graph", ...errors };
  const limit = await limitOf(peers, drawn);
  const rivals = drawn.contenders.filter(({ failed }) => failed === undefined);
  const contenders = [
    { facts: { name: "nexus", ...ours }, time: (n) => nexus.time(n), run: (s) => nexus.run(s) },
    { facts: { name: AGAIN, ...ours }, time: (n) => nexus.time(n) },
    ...rivals.map(({ id, ...facts }) => ({
      facts,
      time: async (replays) => (await peers.ask("time", { contender: id, replays })).samples,
      run: (seconds) => peers.ask("run", { contender: id, seconds }),
      mayFail: true,
      eager: facts.mode === "eager",
    })),
    ...limit,
  ];
  const plan = { rounds: site.rounds, batches, seed, cell: `${shape.name} ${tokens} ${routing}` };
  const { taken, failed } = await takeTurns(contenders, plan);
  const results = contenders.map((contender) => {
    const { name, mode } = contender.facts;
    if (failed.has(contender)) return { name, mode, failed: failed.get(contender) };
    const rounds = taken.get(contender);
    return { ...contender.facts, samples: rounds.flat(), rounds };
  });
  const measuredLimit = limit.length > 0 && !failed.has(limit[0]) ? results.pop() : undefined;
  const weights = 3 * shape.hidden * shape.intermediate;
  const cell = {
    shape: shape.name,
    experts: shape.experts,
    tokens,
    routing,
    seed,
    batches,
    expertsUsed: drawn.expertsUsed,
    imbalance: drawn.imbalance,
    weightBytes: Math.round(2 * weights * drawn.expertsUsed),
    gflop: (2 * weights * tokens * shape.topK) / 1e9,
    ...(measuredLimit && { limit: measuredLimit }),
    contenders: [...results, ...drawn.contenders.filter(({ failed }) => failed !== undefined)],
  };
  return { cell, energy: energy ? await energies(site, contenders, cell) : [] };
}

/** Rows of a batched product are even, so experts that are not used are left out, too. */
async function limitOf(peers, { expertsUsed }) {
  const active = Math.max(1, Math.round(expertsUsed));
  try {
    await peers.ask("cublas", { active });
  } catch (error) {
    console.error(`no limit by cuBLAS: ${error.message}`);
    return [];
  }
  const time = async (replays) =>
    (await peers.ask("time", { contender: "cublas", replays })).samples;
  return [{ facts: { name: "cublas" }, time, mayFail: true }];
}

/** Nexus, the fastest peer, and the loop that was fastest. */
async function energies(site, contenders, { shape, tokens, routing, contenders: results }) {
  const peers = results.filter(
    ({ name, samples }) => samples && name !== "nexus" && name !== AGAIN,
  );
  peers.sort((a, b) => median(a.samples) - median(b.samples));
  const best = peers[0];
  const loop = peers.find(({ name }) => name.startsWith("loop"));
  const asked = [results[0], best, loop === best ? undefined : loop].filter((each) => each);
  const measured = [];
  for (const { name, mode } of asked) {
    const contender = contenders.find(({ facts }) => facts.name === name && facts.mode === mode);
    const reading = await energyOf(site.device, (seconds) => contender.run(seconds)).catch(
      (error) => {
        if (contender.mayFail !== true || error instanceof Refused) throw error;
        return { unavailable: error.message };
      },
    );
    measured.push({
      shape,
      tokens,
      routing,
      contender: name,
      mode,
      ...reading,
      idleWatts: site.idleWatts,
    });
  }
  return measured;
}
