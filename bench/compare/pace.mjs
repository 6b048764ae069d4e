/**
 * How steps follow each other in a run without a pause, whose energy is read: the same for Nexus (nexus.mjs) and for peers
 * (../peers/contender.py, which has these two constants as well).
 *
 * Between two graphs a stream may be idle for microseconds, which no time between a replay's own events contains. Short steps are
 * therefore put into graphs that hold many, all batches in turn.
 */

const GRAPH_US = 2000;
/** About so much work is handed over before the host waits. */
const BURST_SECONDS = 0.1;

/**
 * @param us that a step takes
 * @returns { rounds: how often a graph holds every batch's step, 0 if steps are launched one by one; launches: in a burst,
 *   of all batches equally often }
 */
export function paceOf(us, batches) {
  if (us >= GRAPH_US) return { rounds: 0, launches: Math.ceil(burstOf(us) / batches) * batches };
  const rounds = Math.ceil(GRAPH_US / (us * batches));
  return { rounds, launches: burstOf(us * rounds * batches) };
}

const burstOf = (us) => Math.max(1, Math.round((BURST_SECONDS * 1e6) / us));
