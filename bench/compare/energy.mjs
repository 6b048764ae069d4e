/** Joules of steps that run without a pause, and the card's idle power, by the counter that NVML reads. */

import { setTimeout as sleep } from "node:timers/promises";
import { EnergyMonitor } from "../gpu/support.mjs";

/** The counter moves every 100 ms, so a reading lasts up to 0.2 s less: five seconds in any case, off by 2 % at each end at most. */
export const WINDOW_SECONDS = 5.3;
/** Clocks, fans and the counter's own averaging come to rest. */
const SETTLE_SECONDS = 2;
/** Before a window: temperature and power are those of the load. */
const WARM_UP_SECONDS = 0.5;

/** @param run (seconds) => { steps, seconds } */
export async function energyOf(device, run) {
  const monitor = new EnergyMonitor(device.energy);
  await run(WARM_UP_SECONDS);
  const window = monitor.begin();
  // The opening look at the counter takes some milliseconds of another thread.
  await sleep(5);
  const { steps } = await run(WINDOW_SECONDS);
  const reading = await window.end({ tokens: 0 });
  if (!reading.available) return { unavailable: reading.reason };
  return { seconds: reading.seconds, steps, joules: reading.joules };
}

/** Watts with contexts open and nothing running. */
export async function idleWattsOf(device) {
  if (!device.energy.available) return null;
  await sleep(SETTLE_SECONDS * 1e3);
  const window = new EnergyMonitor(device.energy).begin();
  await sleep(WINDOW_SECONDS * 1e3);
  const reading = await window.end({ tokens: 0 });
  return reading.available ? reading.watts : null;
}
