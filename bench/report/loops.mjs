/** The table of the system that this project began from: a layer beside loops over its experts. */

import { energyFigures, energyOf, entriesOf, fastestOf, isNexus, isPeer } from "./figures.mjs";
import { cellName } from "./format.mjs";

const isLoop = ({ name }) => name.startsWith("loop");

/**
 * A loop's time is the shorter of two: timed, and that of a step in the five seconds of its energy window. Its host launches it, and is
 * not equally fast in both.
 */
function steady(entry, joules) {
  const windowUs = joules.find(({ label }) => label === entry.label)?.windowUs;
  return { ...entry, timedUs: entry.us, windowUs, us: Math.min(entry.us, windowUs ?? entry.us) };
}

/**
 * @param cells of the part with the loops
 * @returns of each cell Nexus, the fastest loop, the speed-up over it and the energy saved, and
 *   the fastest peer that is no loop, as far as they were measured
 */
export function loopFigures(cells) {
  return cells.map((cell) => {
    const { shape, tokens, contenders } = cell;
    const entries = entriesOf(cell);
    const nexus = fastestOf(entries, isNexus);
    const other = fastestOf(entries, (entry) => isPeer(entry) && !isLoop(entry));
    const joules = energyOf([cell]).map(energyFigures);
    const loops = entries.filter(isLoop).map((entry) => steady(entry, joules));
    const loop = fastestOf(loops, () => true);
    const perStep = (entry) => joules.find(({ label }) => label === entry?.label)?.perStep;
    const ours = perStep(nexus);
    const theirs = perStep(loop);
    return {
      shape,
      tokens,
      nexus,
      loop,
      other,
      name: cellName(cell),
      failed: contenders.filter(({ failed }) => failed !== undefined),
      ...(nexus && loop && { speedup: loop.us / nexus.us }),
      joulesPerToken: { nexus: ours && ours / tokens, loop: theirs && theirs / tokens },
      ...(ours && theirs && { saving: 1 - ours / theirs }),
    };
  });
}
