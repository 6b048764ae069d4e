/** What skewed routing costs beside uniform routing: a panel for each shape and routing. */

import { COMMON_PEER, groupBy, skewPenalties } from "../figures.mjs";
import {
  axes,
  chart,
  element,
  legend,
  line,
  linearScale,
  linearTicks,
  logScale,
  styleOf,
  text,
} from "./svg.mjs";

const LEFT = 66;
const TOP = 100;
const [PANEL_WIDTH, PANEL_HEIGHT] = [250, 110];
const [GAP_X, GAP_Y] = [26, 54];

/** @returns the chart, or undefined where nothing was measured with skew */
export function skewChart(cells, labels) {
  const penalties = skewPenalties(cells);
  if (penalties.length === 0) return undefined;
  const shapes = groupBy(penalties, ({ cell }) => cell.shape);
  const routings = [...new Set(penalties.map(({ cell }) => cell.routing))];
  const values = penalties.flatMap(({ nexus, common }) => [nexus ?? 1, common ?? 1]);
  const range = [Math.min(0.95, ...values) - 0.02, Math.max(1.1, ...values) + 0.02];
  const tokens = penalties.map(({ cell }) => cell.tokens);
  const xRange = [Math.min(...tokens) / 1.3, Math.max(...tokens) * 1.3];
  const series = [
    { key: "nexus", label: "nexus" },
    { key: "common", label: COMMON_PEER },
  ].map((each) => ({ ...each, ...styleOf(labels, each.label) }));

  const panels = shapes.flatMap(([shape, ofShape], row) =>
    routings.map((routing, column) => {
      const left = LEFT + column * (PANEL_WIDTH + GAP_X);
      const top = TOP + row * (PANEL_HEIGHT + GAP_Y);
      const box = { left, right: left + PANEL_WIDTH, top, bottom: top + PANEL_HEIGHT };
      const group = ofShape.filter(({ cell }) => cell.routing === routing);
      const isLast = row === shapes.length - 1;
      return panel(box, group, series, {
        range,
        xRange,
        title: `${shape}, ${routing}`,
        xTitle: isLast ? "tokens" : undefined,
        yTitle: column === 0 ? "of uniform" : undefined,
      });
    }),
  );
  return chart(
    {
      width: LEFT + routings.length * (PANEL_WIDTH + GAP_X),
      height: TOP + shapes.length * (PANEL_HEIGHT + GAP_Y),
      title: "What skew costs",
      subtitle:
        "time over that of uniform routing with as many tokens; fewer experts in use make it less than 1",
    },
    legend(series, { x: LEFT, y: 66, width: 600 }).svg,
    panels,
  );
}

function panel(box, group, series, { range, xRange, title, ...titles }) {
  if (group.length === 0) return [];
  const x = logScale(xRange, [box.left, box.right]);
  const y = linearScale(range, [box.bottom, box.top]);
  const yTicks = linearTicks(...range, 4).map((tick) => ({
    at: y(tick),
    // All panels of a row share the labels of the first.
    ...(titles.yTitle !== undefined && { label: tick.toFixed(2) }),
  }));
  return [
    text(box.left, box.top - 8, title, { class: "strong" }),
    axes(box, { xTicks: xTicks(group, x), yTicks, ...titles }),
    element("path", { d: `M${box.left} ${y(1).toFixed(2)}H${box.right}`, class: "axis" }),
    series.toReversed().map(({ key, ...style }) =>
      line(
        group
          .filter((each) => each[key] !== undefined)
          .map((each) => [x(each.cell.tokens), y(each[key])]),
        style,
      ),
    ),
  ];
}

/** Labels only where they do not run into the one before. */
function xTicks(group, x) {
  let free = Number.NEGATIVE_INFINITY;
  return group.map(({ cell: { tokens } }) => {
    const at = x(tokens);
    const half = `${tokens}`.length * 3.6 + 3;
    if (at - half < free) return { at };
    free = at + half;
    return { at, label: `${tokens}` };
  });
}
