/** Energy of a step beside Nexus's: bars, a group for each cell. */

import { number } from "../format.mjs";
import { axes, chart, element, linearScale, linearTicks, styleOf, text } from "./svg.mjs";

const [LEFT, RIGHT] = [190, 700];
const WIDTH = 880;
const BAR = 20;
const GROUP_GAP = 34;
const TOP = 84;

/** @param groups what parts.mjs's `energyGroups` returns */
export function energyChart(groups, labels) {
  const known = groups
    .map(([name, group]) => [name, group.filter(({ overNexus }) => overNexus !== undefined)])
    .filter(([, group]) => group.length > 1);
  if (known.length === 0) return undefined;
  const most = Math.max(...known.flatMap(([, group]) => group.map(({ overNexus }) => overNexus)));
  const x = linearScale([0, most], [LEFT, RIGHT]);
  const parts = [];
  let top = TOP;
  for (const [name, group] of known) {
    parts.push(text(16, top, name, { class: "strong" }));
    top += 8;
    for (const { label, overNexus, perStep } of group) {
      const middle = top + BAR / 2 + 4;
      parts.push(
        text(LEFT - 8, middle, label, { anchor: "end" }),
        element("rect", {
          x: LEFT,
          y: top + 2,
          height: BAR - 4,
          rx: 2,
          width: x(overNexus) - LEFT,
          fill: styleOf(labels, label).colour,
        }),
        text(x(overNexus) + 7, middle, `${overNexus.toFixed(2)}x, ${number(perStep * 1e3)} mJ`),
      );
      top += BAR;
    }
    top += GROUP_GAP;
  }
  const bottom = top - GROUP_GAP + 6;
  const ticks = linearTicks(0, most).map((tick) => ({ at: x(tick), label: `${tick}` }));
  return chart(
    {
      width: WIDTH,
      height: bottom + 52,
      title: "Energy of a step",
      subtitle: "of Nexus's in the same cell, idle power included; lower is better",
    },
    axes(
      { left: LEFT, right: RIGHT, top: TOP, bottom },
      { xTicks: ticks, yTicks: [], xTitle: "times the energy of Nexus" },
    ),
    parts,
    element("path", {
      d: `M${x(1).toFixed(2)} ${TOP - 8}V${bottom}`,
      class: "axis",
      "stroke-dasharray": "3 3",
    }),
  );
}
