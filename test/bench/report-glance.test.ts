/** What pages quote of a report: who takes part, means by shape and tokens, microseconds of a few cells. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { cell, contender } from "./example-result.ts";
import { at, figuresOf, load, QWEN, skip } from "./report-support.ts";

describe("report at a glance", { skip }, () => {
  it("the peers that every cell has are counted and named, the others with their cells", async () => {
    const { leadBlocks } = await load("lead.mjs");
    const all = (...more: string[]) =>
      ["nexus", "x", "y", ...more].map((name, i) => contender(name, 100 + i));
    const lead = JSON.stringify(
      leadBlocks(
        await figuresOf([cell(at(1), all()), cell(at(4), all("z", "openai-triton_kernels"))]),
        [],
      ),
    );
    assert.match(
      lead,
      /\*\*Two peers in every cell\*\*: x, y\. Beside them openai-triton_kernels in 1 cell, z in 1 cell\./,
    );
    assert.doesNotMatch(lead, /Not measured in these/);
  });

  it("means by shape and tokens, and microseconds, as pages quote them", async () => {
    const { bySize, meansTable, microsecondsTable, uniformCells } = await load("glance.mjs");
    const figures = await figuresOf([
      cell(at(64), [
        contender("nexus", 100),
        contender("vllm-schedule", 120),
        contender("loop", 90, "eager"),
      ]),
      cell(at(64, "hot"), [contender("nexus", 100), contender("vllm-schedule", 200)]),
      cell(at(4, "uniform", "mixtral-8x7b"), [contender("nexus", 100), contender("y", 110)]),
    ]);
    const { columns, rows } = meansTable(
      [
        ["", figures],
        ["again", figures],
      ],
      bySize("tokens"),
    );
    assert.deepEqual(
      columns.map(({ title }: { title: string }) => title),
      ["over", "4", "64", "all"],
    );
    // Of 64 tokens 0.9 and 2 over the best peer, 1.2 and 2 over vLLM's schedule.
    assert.deepEqual(rows.slice(0, 2), [
      ["the best peer", "1.10x", "1.34x", "1.26x"],
      ["vllm-schedule", "-", "1.55x", "1.55x"],
    ]);
    assert.equal(rows[3][0], "again: vllm-schedule");
    const shown = microsecondsTable(uniformCells(figures.cells), [["", figures.cells]]);
    assert.deepEqual(shown.rows, [
      [`${QWEN}, 64 tokens`, "100", "120", "90.0", "-"],
      ["mixtral-8x7b, 4 tokens", "100", "-", "-", "-"],
    ]);
  });
});
