/**
 * Time of a step against the number of tokens for one shape with uniform routing: above in
 * microseconds beside the roofline, below as a multiple of it, where contenders that lie on
 * top of each other above come apart.
 */

import { labelsOf } from "../tables.mjs";
import { axes, chart, legend, line, logScale, logTicks, styleOf } from "./svg.mjs";

const WIDTH = 880;
const [LEFT, RIGHT] = [72, 856];
const UPPER_HEIGHT = 280;
const LOWER_HEIGHT = 220;
const ROOF = { colour: "var(--soft)", dashes: "6 4", width: 1.5 };

/** @param cells of one shape, uniform routing @param labels of all contenders of the report */
export function latencyChart(shape, cells, labels) {
  const present = labelsOf(cells);
  const series = labels
    .filter((label) => present.includes(label))
    .map((label) => ({
      label,
      ...styleOf(labels, label),
      points: cells.flatMap((cell) => {
        const entry = cell.entries.find((each) => each.label === label);
        return entry === undefined ? [] : [{ cell, us: entry.us }];
      }),
    }));
  const roof = {
    label: "roofline",
    ...ROOF,
    points: cells.map((cell) => ({ cell, us: cell.roofline.us })),
  };
  const all = [roof, ...series];
  const key = legend([...series, roof], { x: LEFT, y: 68, width: RIGHT - LEFT });

  const tokens = cells.map((cell) => cell.tokens);
  const x = logScale(padded(tokens, 1.15), [LEFT, RIGHT]);
  const xTicks = tokens.map((count) => ({ at: x(count), label: `${count}` }));
  const upper = {
    left: LEFT,
    right: RIGHT,
    top: 62 + key.height,
    bottom: 62 + key.height + UPPER_HEIGHT,
  };
  const lower = { ...upper, top: upper.bottom + 34, bottom: upper.bottom + 34 + LOWER_HEIGHT };

  return chart(
    {
      width: WIDTH,
      height: lower.bottom + 52,
      title: `${shape}: time of a step`,
      subtitle: "uniform routing, both axes logarithmic; lower is better",
    },
    key.svg,
    panel(
      upper,
      { x, xTicks: xTicks.map(({ at }) => ({ at })), yTitle: "us" },
      all,
      ({ us }) => us,
    ),
    panel(
      lower,
      { x, xTicks, xTitle: "tokens", yTitle: "times the roofline" },
      all,
      ({ us, cell }) => us / cell.roofline.us,
    ),
  );
}

function panel(box, { x, ...titles }, series, heightOf) {
  const values = series.flatMap(({ points }) => points.map(heightOf));
  const range = padded(values, 1.1);
  const y = logScale(range, [box.bottom, box.top]);
  const yTicks = logTicks(...range).map((tick) => ({
    at: y(tick),
    label: tick.toLocaleString("en-US"),
  }));
  return [
    axes(box, { yTicks, ...titles }),
    // Nexus last, on top of the others.
    series.toReversed().map(({ points, ...style }) =>
      line(
        points.map((point) => [x(point.cell.tokens), y(heightOf(point))]),
        style,
      ),
    ),
  ];
}

/** The range of some values with a margin on both sides, as a factor. */
function padded(values, factor) {
  return [Math.min(...values) / factor, Math.max(...values) * factor];
}
