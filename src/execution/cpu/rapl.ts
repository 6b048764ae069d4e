/**
 * Energy of the CPU from RAPL, the running average power limit counters that
 * Intel and AMD processors keep, read through Linux's powercap files.
 *
 * What is counted is whole packages: every core, the caches and the memory
 * controller, and every process that runs on them. It is neither this process
 * alone nor the machine at the wall. `psys`, `dram` and the per-core domains are
 * left out, because they overlap the packages on some processors and are absent
 * on others.
 *
 * A package's counter goes back to 0 past `max_energy_range_uj`. The readings
 * made here do not, provided the counter is read at least once per wrap: the
 * range is about 262 kJ on Intel parts and 65 kJ on AMD parts, so a package at
 * 100 W wraps after 44 or 11 minutes and one at 400 W after 11 or under 3.
 *
 * Nothing is estimated. Where a counter cannot be read there is no energy, and
 * the reason says what would change that.
 */

import { readdirSync, readFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { DeviceFailedError } from "../../errors.ts";
import type { EnergySource } from "../device.ts";

/** Where Linux mounts the powercap class. */
export const POWERCAP_ROOT = "/sys/class/powercap";

/**
 * RAPL moves its counters about once a millisecond, so a window's energy is off
 * by up to one update at either end: under 4 % of a window of 50 ms.
 */
const MINIMUM_WINDOW_SECONDS = 0.05;

/**
 * Top-level domains only (`intel-rapl:0`, also on AMD), not their parts (`intel-rapl:0:0`) nor the
 * second view of the same counters that some laptops have (`intel-rapl-mmio:0`).
 */
const TOP_LEVEL_DOMAIN = /^intel-rapl:\d+$/;

const MICROJOULES_PER_JOULE = 1e6;

/** One processor package and its counter. */
export interface RaplPackage {
  /** As the kernel calls it, e.g. `"package-0"`. */
  readonly name: string;
  readonly energyFile: string;
  /** The counter goes back to 0 past this many microjoules. */
  readonly rangeMicrojoules: number;
  /** What the counter stood at when it was found. */
  readonly startMicrojoules: number;
}

/** The packages whose energy can be read, or why there are none and what to do about it. */
export type RaplSurvey =
  | { readonly available: true; readonly packages: readonly RaplPackage[] }
  | { readonly available: false; readonly reason: string; readonly remedy: string };

/**
 * Opens the energy counters of all packages, summed. Reads a few small files once;
 * later readings are asynchronous.
 *
 * @param root the powercap folder
 * @param platform as in `process.platform`
 */
export function openRapl(
  root: string = POWERCAP_ROOT,
  platform: NodeJS.Platform = process.platform,
): EnergySource {
  const survey = surveyRapl(root, platform);
  if (!survey.available) return { available: false, reason: `${survey.reason} ${survey.remedy}` };
  const counter = new RaplCounter(survey.packages);
  return {
    available: true,
    domain: `RAPL ${survey.packages.map((found) => found.name).join(" + ")}`,
    minimumWindowSeconds: MINIMUM_WINDOW_SECONDS,
    joules: () => counter.joules(),
  };
}

/** Looks for readable package counters, and where there are none tells the reason and the remedy apart. */
export function surveyRapl(
  root: string = POWERCAP_ROOT,
  platform: NodeJS.Platform = process.platform,
): RaplSurvey {
  if (platform !== "linux") {
    return unavailable(
      `RAPL is read through Linux's powercap files, and this is ${platform}.`,
      "Run on Linux to measure energy.",
    );
  }
  let entries: string[];
  try {
    entries = readdirSync(root);
  } catch (error) {
    if (codeOf(error) === "ENOENT") {
      return unavailable(
        `There is no ${root}: this is a virtual machine, whose host keeps the counters to itself, or a kernel without powercap support.`,
        "Run on the bare machine, with a kernel that has CONFIG_POWERCAP and CONFIG_INTEL_RAPL.",
      );
    }
    return unreadable(root, error);
  }
  const packages: RaplPackage[] = [];
  const domains = entries.filter((entry) => TOP_LEVEL_DOMAIN.test(entry)).sort(byNumber);
  for (const domain of domains) {
    const nameFile = join(root, domain, "name");
    try {
      const name = readFileSync(nameFile, "utf8").trim();
      if (!name.startsWith("package-")) continue;
      packages.push(readPackage(join(root, domain), name));
    } catch (error) {
      if (error instanceof BadCounter) {
        return unavailable(
          `${error.message}.`,
          "The kernel's RAPL driver is at fault; update the kernel.",
        );
      }
      return unreadable((error as NodeJS.ErrnoException).path ?? nameFile, error);
    }
  }
  if (packages.length === 0) {
    return unavailable(
      `${root} lists no processor package with an energy counter.`,
      'Load the driver with "sudo modprobe intel_rapl_msr"; in a virtual machine there is nothing to load.',
    );
  }
  return { available: true, packages };
}

/** The sum of several wrapping counters, as joules that never go back. */
class RaplCounter {
  readonly #packages: readonly RaplPackage[];
  readonly #last: number[];
  #totalMicrojoules = 0;
  #lastReading: Promise<unknown> = Promise.resolve();

  constructor(packages: readonly RaplPackage[]) {
    this.#packages = packages;
    this.#last = packages.map((found) => found.startMicrojoules);
  }

  /** One reading at a time: if two could overtake each other, the older would look like a wrap. */
  joules(): Promise<number> {
    const reading = this.#lastReading.then(() => this.#read());
    this.#lastReading = reading.catch(() => undefined);
    return reading;
  }

  async #read(): Promise<number> {
    // All packages are read before any is booked, so a failed reading leaves the sum whole.
    const readings = await Promise.all(this.#packages.map(readCounter));
    readings.forEach((reading, i) => {
      const step = reading - (this.#last[i] as number);
      this.#totalMicrojoules +=
        step < 0 ? step + (this.#packages[i] as RaplPackage).rangeMicrojoules : step;
      this.#last[i] = reading;
    });
    return this.#totalMicrojoules / MICROJOULES_PER_JOULE;
  }
}

async function readCounter({ energyFile, name, rangeMicrojoules }: RaplPackage): Promise<number> {
  try {
    return parseCounter(energyFile, await readFile(energyFile, "utf8"), rangeMicrojoules);
  } catch (error) {
    throw new DeviceFailedError(
      `Cannot read the energy of ${name} any more: ${(error as Error).message}. Open the device again; if it persists, nexus doctor tells why.`,
      { cause: error },
    );
  }
}

function readPackage(folder: string, name: string): RaplPackage {
  const rangeFile = join(folder, "max_energy_range_uj");
  const energyFile = join(folder, "energy_uj");
  const rangeMicrojoules = parseCounter(rangeFile, readFileSync(rangeFile, "utf8"));
  if (rangeMicrojoules === 0) throw new BadCounter(`${rangeFile} holds 0`);
  const startMicrojoules = parseCounter(
    energyFile,
    readFileSync(energyFile, "utf8"),
    rangeMicrojoules,
  );
  return { name, energyFile, rangeMicrojoules, startMicrojoules };
}

/** A counter's file holds something that is no counter. */
class BadCounter extends Error {}

function parseCounter(file: string, text: string, most = Number.MAX_SAFE_INTEGER): number {
  const digits = text.trim();
  const value = Number(digits);
  if (!/^\d+$/.test(digits) || value > most) {
    throw new BadCounter(
      `${file} holds "${digits.slice(0, 32)}" where a whole number up to ${most} is expected`,
    );
  }
  return value;
}

function unreadable(path: string, error: unknown): RaplSurvey {
  const code = codeOf(error);
  if (code === "EACCES" || code === "EPERM") {
    const files = path.replace(/intel-rapl:\d+/, "intel-rapl:*");
    return unavailable(
      `${path} is not readable by this user: since 2020 Linux lets only root read energy counters, because they can leak secrets to other users (CVE-2020-8694).`,
      `Run as root or, where no other user is to be feared, "sudo chmod a+r ${files}", which lasts until the next boot.`,
    );
  }
  if (code === "ENOENT") {
    return unavailable(
      `${path} is missing though its folder is listed: container runtimes hide RAPL this way.`,
      "Run outside the container, or let the container see /sys/devices/virtual/powercap.",
    );
  }
  return unavailable(
    `${path} cannot be read: ${(error as Error).message}.`,
    "Check that the processor's package is online.",
  );
}

function unavailable(reason: string, remedy: string): RaplSurvey {
  return { available: false, reason, remedy };
}

function codeOf(error: unknown): string | undefined {
  return (error as NodeJS.ErrnoException).code;
}

function byNumber(a: string, b: string): number {
  return Number(a.slice(a.indexOf(":") + 1)) - Number(b.slice(b.indexOf(":") + 1));
}
