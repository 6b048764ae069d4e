/**
 * How long a graph takes on the GPU itself, between events on the launch stream: for
 * benchmarks. Host time and polling are not in it.
 */

import { shown } from "../../errors/wording.ts";
import { InvalidArgumentError, type NexusError } from "../../errors.ts";
import type { CudaBudgets } from "./budgets.ts";
import type { Driver } from "./driver/driver.ts";
import type { CudaGraph } from "./graph.ts";
import type { Job } from "./timeline.ts";

/** What timing needs of the device. */
export interface TimingSite {
  readonly driver: Driver;
  readonly launchStream: bigint;
  submit(job: Job): Promise<void>;
}

/** So many replays are handed over at once: the driver's launch queue, of about a thousand, never fills. */
const BATCH = 64;

/**
 * Times replays one by one, each between events of its own. Several graphs take turns,
 * so that none finds in the cache what it has just left there.
 *
 * @returns microseconds of each
 * @throws InvalidArgumentError if `repeats` is not a whole number, 1 or more, or there is no graph
 */
export async function timeReplays(
  site: TimingSite,
  graphs: readonly CudaGraph[],
  repeats: number,
): Promise<Float64Array> {
  requireRepeats(repeats);
  requireGraphs(graphs);
  const times = new Float64Array(repeats);
  const marks: bigint[] = [];
  try {
    const pairs = Math.min(BATCH, repeats);
    for (let i = 0; i < 2 * pairs; i++) marks.push(site.driver.createEvent(true));
    for (let done = 0; done < repeats; done += pairs) {
      const count = Math.min(pairs, repeats - done);
      for (const graph of graphs) graph.requireOpen();
      await site.submit(
        job(graphs, () => {
          for (let i = 0; i < count; i++) {
            site.driver.recordEvent(marks[2 * i] as bigint, site.launchStream);
            graphs[(done + i) % graphs.length]?.issue();
            site.driver.recordEvent(marks[2 * i + 1] as bigint, site.launchStream);
          }
        }),
      );
      for (let i = 0; i < count; i++) times[done + i] = microseconds(site, marks, 2 * i);
    }
  } finally {
    destroy(site, marks);
  }
  return times;
}

/**
 * Times replays that follow each other without a gap, as a loop that never waits would run them.
 * Several graphs take turns.
 *
 * @returns microseconds a replay, on average
 * @throws InvalidArgumentError if `repeats` is not a whole number, 1 or more, or there is no graph
 */
export async function timeBackToBack(
  site: TimingSite,
  graphs: readonly CudaGraph[],
  repeats: number,
): Promise<number> {
  requireRepeats(repeats);
  requireGraphs(graphs);
  const marks: bigint[] = [];
  try {
    for (let i = 0; i < 2; i++) marks.push(site.driver.createEvent(true));
    await site.submit(
      job(graphs, () => {
        site.driver.recordEvent(marks[0] as bigint, site.launchStream);
        for (let i = 0; i < repeats; i++) graphs[i % graphs.length]?.issue();
        site.driver.recordEvent(marks[1] as bigint, site.launchStream);
      }),
    );
    return microseconds(site, marks, 0) / repeats;
  } finally {
    destroy(site, marks);
  }
}

/** A submission of several replays: begins and ends like a launch of every graph. */
function job(graphs: readonly CudaGraph[], replays: () => void): Job {
  return {
    prepare(budgets: CudaBudgets): void {
      for (const graph of graphs) graph.prepare(budgets);
    },
    issue: replays,
    finish(): NexusError | undefined {
      const faults = graphs.map((graph) => graph.finish());
      return faults.find((fault) => fault !== undefined);
    },
  };
}

function microseconds({ driver }: TimingSite, marks: readonly bigint[], from: number): number {
  return driver.elapsedMilliseconds(marks[from] as bigint, marks[from + 1] as bigint) * 1000;
}

function destroy({ driver }: TimingSite, events: readonly bigint[]): void {
  for (const event of events) driver.destroyEvent(event);
}

/** Before anything else, since events are made in the context that is current. */
function requireGraphs(graphs: readonly CudaGraph[]): void {
  if (graphs.length === 0) throw new InvalidArgumentError("There is no graph to time.");
  for (const graph of graphs) graph.requireOpen();
}

function requireRepeats(repeats: number): void {
  if (Number.isInteger(repeats) && repeats >= 1) return;
  throw new InvalidArgumentError(
    `Cannot time ${shown(repeats)} replays. Use a whole number, 1 or more.`,
  );
}
