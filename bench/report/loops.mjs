/** The table of the system that this project began from: a layer beside loops over its experts. */

import { energyFigures, energyOf, entriesOf, fastestOf, isNexus, isPeer } from "./figures.mjs";
import { cellName } from "./format.mjs";

const isLoop = ({ name }) => name.startsWith("loop");

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
    const loop = fastestOf(entries, isLoop);
    const other = fastestOf(entries, (entry) => isPeer(entry) && !isLoop(entry));
    const joules = energyOf([cell]).map(energyFigures);
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
