/**
 * Random draws that can be repeated. Every test process prints the seed it draws
 * from; NEXUS_TEST_SEED sets it. What one test draws does not depend on which
 * other tests run.
 */

import { Random } from "../../src/workload/random.ts";

const given = process.env["NEXUS_TEST_SEED"];

export const SEED: number =
  given === undefined ? Math.floor(Math.random() * 2 ** 31) : Number.parseInt(given, 10);

if (!Number.isInteger(SEED)) {
  throw new Error(`NEXUS_TEST_SEED is ${JSON.stringify(given)}; it must be a whole number.`);
}
console.log(`NEXUS_TEST_SEED=${SEED}`);

/** A generator for one purpose. */
export function randomFor(purpose: string): Random {
  return new Random(SEED).fork(purpose);
}

/** A whole number, least to most. */
export function between(random: Random, least: number, most: number): number {
  return least + random.integer(most - least + 1);
}

/** One of a list. */
export function pick<T>(random: Random, list: readonly T[]): T {
  return list[random.integer(list.length)] as T;
}

/** True with the given probability. */
export function chance(random: Random, probability: number): boolean {
  return random.uniform() < probability;
}

/** float32 standard normal numbers times `deviation`. */
export function normal(random: Random, length: number, deviation = 1): Float32Array {
  return random.fillNormal(new Float32Array(length), deviation);
}
