/** The report of a result: its blocks in order, with the charts between them. */

import { barsOf } from "./bars.mjs";
import { energyChart } from "./charts/energy.mjs";
import { latencyChart } from "./charts/latency.mjs";
import { skewChart } from "./charts/skew.mjs";
import { speedupChart } from "./charts/speedup.mjs";
import { counterBlocks } from "./counters.mjs";
import { figure, heading, paragraph } from "./document.mjs";
import { energyGroups, energyOf, figuresOf, LEAST_OFF_PACE } from "./figures.mjs";
import { number, percent } from "./format.mjs";
import { glanceBlocks } from "./glance.mjs";
import { leadBlocks } from "./lead.mjs";
import {
  ablationBlocks,
  conditionBlocks,
  driftBlocks,
  energyTable,
  loopBlocks,
  shapeTable,
  trafficBlocks,
} from "./parts.mjs";
import {
  agreementBlocks,
  byShape,
  failureList,
  labelsOf,
  latencyTable,
  limitsTable,
  limitsText,
  noiseTable,
  skewTable,
  speedupTable,
} from "./tables.mjs";

/** @param result what merge.mjs's `merge` returns @returns { title, blocks } */
export function reportOf(result) {
  const figures = figuresOf(result);
  return {
    title: `Nexus beside its peers on ${result.device.name}`,
    blocks: [
      ...leadBlocks(figures, barsOf(figures)),
      ...glanceBlocks(figures),
      ...cellBlocks(figures),
      ...energyBlocks(figures),
      ...loopBlocks(figures.loopCells),
      ...ablationBlocks(figures.ablations),
      ...trafficBlocks(figures.traffics),
      ...counterBlocks(figures.counters),
      ...driftBlocks(figures.drifts),
      heading(2, "Shapes"),
      shapeTable(figures.shapes),
      ...conditionBlocks(figures),
    ],
  };
}

function cellBlocks(figures) {
  const { cells, compared } = figures;
  if (cells.length === 0) return [];
  const labels = labelsOf(cells);
  const skew = skewChart(cells, labels);
  const skewed = cells.filter(({ shape, tokens }) =>
    cells.some(
      (cell) => cell.shape === shape && cell.tokens === tokens && cell.routing !== "uniform",
    ),
  );
  return [
    heading(2, "Speed-up"),
    ...(compared.length === 0
      ? []
      : [figure("speedup.svg", "Speed-up over the best peer", speedupChart(compared))]),
    ...byShape(cells, (group) => [speedupTable(group)]),

    heading(2, "Latency"),
    paragraph(
      "Microseconds of a step from router logits to layer output: the median of each of the batches that take turns, and of these the mean. After ± half the distance from the first to the last decile of samples over their batch's median. Nexus is measured twice, and its time is the mean of both. A captured graph unless the name says otherwise. The fastest is in bold.",
    ),
    ...byShape(cells, (group, shape) => [
      ...latencyFigure(shape, group, labels),
      latencyTable(group),
    ]),
    ...failureList(cells),

    heading(2, "Roofline"),
    paragraph(limitsText(figures)),
    ...byShape(cells, (group) => [limitsTable(group)]),

    ...(skew === undefined
      ? []
      : [
          heading(2, "Skew penalty"),
          paragraph("Time over that of uniform routing, same shape and tokens."),
          figure("skew.svg", "What skew costs", skew),
          ...byShape(skewed, (group) => [skewTable(group)]),
        ]),

    heading(2, "Noise"),
    paragraph("Nexus measured twice in the same rounds: how far the two times are apart."),
    noiseTable(cells),

    heading(2, "Agreement"),
    paragraph("How far outputs are from the reference that every contender is held to."),
    ...agreementBlocks(cells),
  ];
}

function latencyFigure(shape, cells, labels) {
  const even = cells.filter(({ routing }) => routing === "uniform");
  // A line needs two points.
  if (even.length < 2) return [];
  const svg = latencyChart(shape, even, labels);
  return [figure(`latency-${fileName(shape)}.svg`, `${shape}: time of a step`, svg)];
}

const fileName = (text) => text.toLowerCase().replace(/[^a-z0-9]+/g, "-");

function energyBlocks({ cells }) {
  const energy = energyOf(cells);
  if (energy.length === 0) return [];
  const groups = energyGroups(energy);
  const labels = [
    ...new Set([
      ...labelsOf(cells),
      ...groups.flatMap(([, group]) => group.map(({ label }) => label)),
    ]),
  ];
  const svg = energyChart(groups, labels);
  return [
    heading(2, "Energy"),
    paragraph(
      `From the card's own counter over windows of ${number(Math.min(...energy.map(({ seconds }) => seconds)))} s or more. A step's time in the window is bold where it is ${percent(LEAST_OFF_PACE)} or more above the latency: the card lowers its clocks under a load that lasts, or steps wait for something between them. Above idle: without what the card draws when it does nothing. The last column is the energy of a step over Nexus's in the same cell; above 1 Nexus saves.`,
    ),
    ...(svg === undefined ? [] : [figure("energy.svg", "Energy of a step", svg)]),
    energyTable(groups),
  ];
}
