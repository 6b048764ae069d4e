/**
 * The words that the main thread and the workers share beside device memory:
 * where the running program is, who is inside it, and the sleepers' alarm.
 *
 * Words that are written often stand on cache lines of their own.
 */

/** RUNNING while a program runs, plus the number of workers inside it; 0 otherwise. */
export const GATE = 0;

/** Counts up whenever there may be new work: workers out of work sleep on it. */
export const WAKE = 16;

/** Workers asleep on WAKE, so that nobody makes a system call to wake no one. */
export const SLEEPERS = 32;

/** Byte address of the running program. */
export const PROGRAM = 48;

/** Number of the running program, handed back with the message that it is over. */
export const SEQUENCE = 49;

/** Size of device memory in pages. */
export const PAGES = 50;

/** Whether groups are bound to workers (1) or any worker serves any group (0). */
export const BOUND = 51;

/** Sixteenths of a worker that each group may use, one or more. */
export const SHARES = 56;

/** For each worker a bit set of the groups that it serves. */
export const SERVES = 64;

export const RUNNING = 1 << 30;

/** Number of control words for a pool of that many workers. */
export function controlWords(workers: number): number {
  return SERVES + workers;
}
