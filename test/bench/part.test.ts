/** A part of the comparison from layer to result file, on an emulated GPU and with a peers' process made up here. */

import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { describe, it } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";
import { withEmulated } from "../execution/cuda/emulator/harness.ts";

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../../..");
const { measurePart } = await import(pathToFileURL(path.join(root, "bench/compare/part.mjs")).href);

interface Request {
  readonly [name: string]: unknown;
}

/** Draws inputs, finds every output right (or, if asked to, wrong), and times its one peer at 50 us. */
class FakePeers {
  readonly asked: string[] = [];
  readonly files: string[] = [];
  readonly #right: boolean;
  readonly #layer: Error | undefined;
  readonly #time: Error | undefined;

  constructor({
    right = true,
    layer,
    time,
  }: { right?: boolean; layer?: Error; time?: Error } = {}) {
    this.#right = right;
    this.#layer = layer;
    this.#time = time;
  }

  async ask(what: string, request: Request = {}): Promise<unknown> {
    this.asked.push(what);
    switch (what) {
      case "layer":
        if (this.#layer !== undefined) throw this.#layer;
        return {};
      case "cell": {
        const { tokens, batches, folder } = request as Record<string, number> & { folder: string };
        for (let i = 0; i < (batches as number); i++) {
          const hidden = new Uint16Array((tokens as number) * 512).fill(0x3c00);
          const logits = Float32Array.from(
            { length: (tokens as number) * 8 },
            (_, j) => (i + j) % 8,
          );
          writeFileSync(path.join(folder, `${i}.hidden.bf16`), hidden);
          writeFileSync(path.join(folder, `${i}.logits.f32`), logits);
        }
        const peer = { id: "p graph", name: "p", mode: "graph", setting: {}, relativeError: 0.004 };
        const broken = { name: "q", mode: "graph", failed: "too large" };
        return { contenders: [peer, broken], expertsUsed: 2, imbalance: 4 };
      }
      case "check":
        this.files.push(...(request["files"] as string[]));
        return { right: this.#right, relativeError: 0.003, rowError: this.#right ? 0.01 : 0.4 };
      case "cublas":
        throw new Error("no such thing here");
      case "time":
        if (this.#time !== undefined) throw this.#time;
        return { samples: new Array(request["replays"] as number).fill(50) };
      default:
        throw new Error(what);
    }
  }
}

const hello = {
  device: { name: "Emulated", memoryBytes: 2 ** 30, uuid: "GPU-0" },
  versions: { torch: "0" },
  unavailable: [],
};
const options = {
  rounds: 2,
  withEnergy: false,
  withSortedLoop: false,
  packWeights: false,
  peers: ["p", "q"],
  tokens: [1],
  wants: ({ tokens, routing }: { tokens: number; routing: string }) =>
    tokens === 1 && routing === "uniform",
};

async function measured(peers: FakePeers) {
  const folder = mkdtempSync(path.join(tmpdir(), "nexus-part-"));
  try {
    return await withEmulated(async (device) => {
      const nvml = { telemetry: async () => ({ smMegahertz: 1000 }) };
      const bench = { device, peers, folder, nvml, hello, limits: { copyTBs: 3 } };
      const { file, failed } = await measurePart(bench, "small", { ...options, out: folder });
      return { failed, result: JSON.parse(readFileSync(file, "utf8")) };
    });
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

describe("a part of the comparison", () => {
  it("writes cells with every round of everybody, and what failed with its reason", async () => {
    const peers = new FakePeers();
    const { failed, result } = await measured(peers);
    assert.equal(failed, false);
    assert.equal(peers.files.length, 16, "the outputs of all batches are checked");
    assert.ok(
      peers.asked.indexOf("check") < peers.asked.indexOf("time"),
      "before anything is timed",
    );
    assert.equal(result.format, "nexus-peers/1");
    assert.equal(result.queuedBursts, true);
    assert.equal(result.pacedWindows, true);
    const { windowSeconds, ...asked } = result.options;
    assert.ok(windowSeconds >= 5);
    assert.deepEqual(asked, {
      rounds: 2,
      energy: false,
      withSortedLoop: false,
      packWeights: false,
      peers: ["p", "q"],
      tokens: [1],
    });
    assert.deepEqual(result.limits, { copyTBs: 3, dataSheetTBs: null, dataSheetTFlops: null });
    assert.equal(result.shapes[0].name, "small");
    const [cell, ...more] = result.cells;
    assert.equal(more.length, 0);
    assert.deepEqual([cell.tokens, cell.routing, cell.batches], [1, "uniform", 16]);
    assert.equal(cell.experts, 8);
    assert.equal(cell.weightBytes, 2 * 3 * 512 * 1024 * 2);
    const names = cell.contenders.map(({ name }: { name: string }) => name);
    assert.deepEqual(names, ["nexus", "nexus-again", "p", "q"]);
    for (const { name, samples, rounds, failed } of cell.contenders) {
      if (name === "q") {
        assert.equal(failed, "too large");
        continue;
      }
      assert.equal(rounds.length, 2);
      assert.deepEqual(rounds.flat(), samples);
      for (const round of rounds) assert.equal(round.length % 16, 0, "whole turns of the batches");
    }
    assert.equal(cell.contenders[0].rowError, 0.01);
    assert.equal(result.conditions.length, 1);
  });

  it("goes on without a peer that cannot be timed, whose reason stands in the cell", async () => {
    const reason = "peers, time: RuntimeError: 16 replays of p were not queued within 2560 us each";
    const { failed, result } = await measured(new FakePeers({ time: new Error(reason) }));
    assert.equal(failed, false);
    const [cell] = result.cells;
    assert.equal(cell.failed, undefined);
    assert.equal(cell.contenders[0].rounds.length, 2);
    assert.deepEqual(cell.contenders.slice(2), [
      { name: "p", mode: "graph", failed: reason },
      { name: "q", mode: "graph", failed: "too large" },
    ]);
  });

  it("times nothing where Nexus is wrong, and says by how much", async () => {
    const peers = new FakePeers({ right: false });
    const { failed, result } = await measured(peers);
    assert.equal(failed, true);
    assert.ok(!peers.asked.includes("time"));
    assert.match(result.cells[0].failed, /off from float64 by 0\.003, a token's by 0\.4/);
    assert.deepEqual(result.cells[0].contenders, []);
  });

  it("goes on without a layer that could not be made", async () => {
    const peers = new FakePeers({ layer: new Error("peers, layer: OutOfMemoryError") });
    const { failed, result } = await measured(peers);
    assert.equal(failed, true);
    assert.deepEqual(
      result.cells.map(({ tokens, failed: why }: Record<string, unknown>) => [tokens, why]),
      [[1, "peers, layer: OutOfMemoryError"]],
    );
  });

  it("runs Nexus's steps without a pause from one graph of all batches in turn", async () => {
    const { NexusContender } = await import(
      pathToFileURL(path.join(root, "bench/compare/nexus.mjs")).href
    );
    const { syntheticLayer } = await import(
      pathToFileURL(path.join(root, "bench/gpu/support.mjs")).href
    );
    const folder = mkdtempSync(path.join(tmpdir(), "nexus-pace-"));
    const batches = 4;
    await new FakePeers().ask("cell", { tokens: 1, batches, folder });
    try {
      await withEmulated(async (device) => {
        const shape = { hiddenSize: 512, intermediateSize: 1024, experts: 8, topK: 2 };
        const synthetic = await syntheticLayer(device, { ...shape, renormalize: true }, 1);
        using _ = synthetic.modules;
        using nexus = await NexusContender.make(synthetic, { tokens: 1, batches, folder });
        const launches: [number, number][] = [];
        const replay = device.timeBackToBack.bind(device);
        device.timeBackToBack = async (graphs, repeats) => {
          const count = [graphs].flat().length;
          launches.push([count, repeats]);
          // Once is enough to see that it can be launched.
          if (count === 1 && launches.length === 2) await replay(graphs, 1);
          return 300;
        };
        const { steps } = await nexus.run(0.001);
        const [look, first, ...more] = launches;
        assert.deepEqual(look, [batches, 2 * batches]);
        // Two rounds of four steps of 300 us are 2.4 ms, and 42 of those a tenth of a second.
        assert.deepEqual(first, [1, 42]);
        assert.equal(steps, (1 + more.length) * 42 * 2 * batches);
      });
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });
});
