/** Speed-up over the best peer of every cell: a heat map with the figures in it, split at 1. */

import { byRouting, groupBy } from "../figures.mjs";
import { number } from "../format.mjs";
import { chart, element, text } from "./svg.mjs";

const LABEL_WIDTH = 84;
const TOP = 92;
const [CELL_WIDTH, CELL_HEIGHT] = [62, 28];
const SHAPE_GAP = 34;
/** From this ratio on, either way, the colour is at its strongest. */
const STRONGEST = 1.5;
const [FAINTEST_INK, STRONGEST_INK] = [0.08, 0.62];

/** @param cells those with a speed-up */
export function speedupChart(cells) {
  const tokens = [...new Set(cells.map((cell) => cell.tokens))].sort((a, b) => a - b);
  const x = (count) => 16 + LABEL_WIDTH + tokens.indexOf(count) * CELL_WIDTH;
  const rows = [];
  let top = TOP;
  for (const [shape, ofShape] of groupBy(cells, (cell) => cell.shape)) {
    rows.push(text(16, top, shape, { class: "strong" }));
    top += 10;
    for (const [routing, ofRouting] of groupBy(ofShape, (cell) => cell.routing).sort(([a], [b]) =>
      byRouting(a, b),
    )) {
      rows.push(text(16, top + CELL_HEIGHT / 2 + 4, routing, { class: "soft" }));
      rows.push(ofRouting.map((cell) => square(cell, x(cell.tokens), top)));
      top += CELL_HEIGHT;
    }
    top += SHAPE_GAP;
  }
  return chart(
    {
      width: Math.max(620, 32 + LABEL_WIDTH + tokens.length * CELL_WIDTH),
      height: top - SHAPE_GAP + 20,
      title: "Speed-up over the best peer of each cell",
      subtitle:
        "blue: Nexus is faster; orange: a peer is faster; outlined: a peer is faster beyond the noise",
    },
    text(16, 68, "tokens", { class: "soft" }),
    tokens.map((count) =>
      text(x(count) + CELL_WIDTH / 2, 68, `${count}`, { class: "soft", anchor: "middle" }),
    ),
    rows,
  );
}

function square({ name, speedup, bestPeer, beatenBy, nexus }, x, y) {
  const strength = Math.min(1, Math.abs(Math.log(speedup)) / Math.log(STRONGEST));
  const ink = FAINTEST_INK + strength * (STRONGEST_INK - FAINTEST_INK);
  const colour = speedup >= 1 ? "--gain" : "--loss";
  const lost = beatenBy.length > 0;
  return element(
    "g",
    {},
    element(
      "title",
      {},
      `${name}: Nexus ${number(nexus.us)} us, ${bestPeer.label} ${number(bestPeer.us)} us`,
    ),
    element("rect", {
      x: x + 1.5,
      y: y + 1.5,
      width: CELL_WIDTH - 3,
      height: CELL_HEIGHT - 3,
      rx: 3,
      style: `fill:rgba(var(${colour}),${ink.toFixed(2)})`,
      stroke: lost ? "var(--c1)" : "none",
      "stroke-width": lost ? 2 : undefined,
    }),
    text(x + CELL_WIDTH / 2, y + CELL_HEIGHT / 2 + 4, speedup.toFixed(2), {
      anchor: "middle",
      class: lost ? "strong" : undefined,
    }),
  );
}
