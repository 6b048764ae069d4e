/**
 * What all charts are drawn with: elements, scales, axes, a legend, and one style that
 * suits light and dark pages. A chart is a text; nothing here knows what it shows.
 */

import { escapeMarkup } from "../document.mjs";

/**
 * Nexus first, then peers in order of appearance. Hues that people with the common forms of
 * colour blindness tell apart (after Okabe and Ito), lighter where the page is dark; every
 * line has a marker of its own as well.
 */
const LIGHT = [
  "#0b63b8",
  "#d55e00",
  "#00825e",
  "#b5489a",
  "#8a6d00",
  "#5b5bd6",
  "#3f8fa8",
  "#7a7a7a",
];
const DARK = [
  "#5cb3ff",
  "#ff9248",
  "#35c99a",
  "#f08fd0",
  "#e6c84a",
  "#a9a6ff",
  "#7fd3ea",
  "#b0b0b0",
];
const MARKERS = ["circle", "square", "triangle", "diamond"];

const variables = (ink, soft, line, page, colours) =>
  [
    `--ink:${ink}`,
    `--soft:${soft}`,
    `--line:${line}`,
    `--page:${page}`,
    ...colours.map((colour, i) => `--c${i}:${colour}`),
  ].join(";");

const STYLE = `
.chart{${variables("#1f2328", "#59636e", "#d8dee4", "#ffffff", LIGHT)};--gain:11,99,184;--loss:213,94,0}
@media (prefers-color-scheme:dark){.chart{${variables("#e6edf3", "#9198a1", "#343b44", "#0d1117", DARK)};--gain:92,179,255;--loss:255,146,72}}
.chart text{font:12px system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif;fill:var(--ink)}
.chart .soft{fill:var(--soft)}
.chart .title{font-size:15px;font-weight:600}
.chart .strong{font-weight:600}
.chart .grid{stroke:var(--line);stroke-width:1;fill:none}
.chart .axis{stroke:var(--soft);stroke-width:1;fill:none}
`;

export function element(name, attributes, ...children) {
  const list = Object.entries(attributes)
    .filter(([, value]) => value !== undefined)
    .map(
      ([key, value]) =>
        ` ${key}="${escapeMarkup(typeof value === "number" ? round(value) : value)}"`,
    )
    .join("");
  const inner = children.flat(Infinity).join("");
  return inner === "" ? `<${name}${list}/>` : `<${name}${list}>${inner}</${name}>`;
}

/** A hundredth of a pixel is finer than any screen. */
const round = (value) => Math.round(value * 100) / 100;

/** @param options class, anchor ("start", "middle", "end"), turned by degrees */
export function text(x, y, content, { class: name, anchor, turned } = {}) {
  const transform = turned === undefined ? undefined : `rotate(${turned} ${round(x)} ${round(y)})`;
  return element(
    "text",
    { x, y, class: name, "text-anchor": anchor, transform },
    escapeMarkup(content),
  );
}

export function chart({ width, height, title, subtitle }, ...children) {
  return element(
    "svg",
    {
      xmlns: "http://www.w3.org/2000/svg",
      viewBox: `0 0 ${width} ${round(height)}`,
      width,
      height,
      class: "chart",
      role: "img",
      "aria-label": title,
    },
    element("style", {}, STYLE),
    text(16, 24, title, { class: "title" }),
    subtitle === undefined ? [] : text(16, 43, subtitle, { class: "soft" }),
    ...children,
  );
}

/** How a contender is drawn everywhere: its place among all labels decides. The first has its colour for itself. */
export function styleOf(labels, label) {
  const place = labels.indexOf(label);
  const others = LIGHT.length - 1;
  return {
    colour: `var(--c${place === 0 ? 0 : 1 + ((place - 1) % others)})`,
    // Seven colours and four markers: one that comes round again does so with another of the other.
    marker: MARKERS[place % MARKERS.length],
    dashes: label.includes("(eager)") ? "2 3" : undefined,
    width: place === 0 ? 3 : 1.75,
  };
}

/** A scale of positive values on which equal ratios are equally far apart. */
export function logScale([from, to], [start, end]) {
  const span = Math.log(to / from);
  return (value) => start + (Math.log(value / from) / span) * (end - start);
}

export function linearScale([from, to], [start, end]) {
  return (value) => start + ((value - from) / (to - from)) * (end - start);
}

/** Round values between two others for a log axis: decades with their 2 and 5, or finer ones where there are few. */
export function logTicks(from, to) {
  for (const steps of [[1], [1, 2, 5], [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8]]) {
    const ticks = [];
    for (let power = Math.floor(Math.log10(from)); power <= Math.log10(to); power++) {
      ticks.push(...steps.map((step) => Number((step * 10 ** power).toPrecision(3))));
    }
    const inside = ticks.filter((tick) => tick >= from * 0.999 && tick <= to * 1.001);
    if (inside.length >= 4 || steps.length > 3) return inside;
  }
  return [];
}

/** Round values from 0, or from a round value below `from`, to one that `to` does not pass. */
export function linearTicks(from, to, count = 5) {
  const rough = (to - from) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((each) => each * power >= rough * 0.999);
  const ticks = [];
  for (let i = Math.ceil(from / step - 1e-9); i * step <= to + step * 1e-6; i++) {
    ticks.push(Number((i * step).toPrecision(6)));
  }
  return ticks;
}

const MARKER_SIZE = 3.6;

export function marker(kind, x, y, colour, size = MARKER_SIZE) {
  const paint = { fill: colour, stroke: "var(--page)", "stroke-width": 1 };
  if (kind === "circle") return element("circle", { cx: x, cy: y, r: size, ...paint });
  const polygon = (...points) =>
    element("path", {
      d: `M${points.map(([dx, dy]) => `${round(x + dx * size)} ${round(y + dy * size)}`).join("L")}Z`,
      ...paint,
    });
  if (kind === "square") return polygon([-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9]);
  if (kind === "triangle") return polygon([0, -1.2], [1.15, 0.9], [-1.15, 0.9]);
  return polygon([0, -1.3], [1.3, 0], [0, 1.3], [-1.3, 0]);
}

/** A line through points with markers on them. @param points [[x, y]...] */
export function line(points, { colour, marker: kind, dashes, width }) {
  const path = points.map(([x, y]) => `${round(x)} ${round(y)}`).join("L");
  return [
    element("path", {
      d: `M${path}`,
      fill: "none",
      stroke: colour,
      "stroke-width": width,
      "stroke-dasharray": dashes,
      "stroke-linejoin": "round",
    }),
    kind === undefined
      ? []
      : points.map(([x, y]) => marker(kind, x, y, colour, width > 2 ? 4.4 : 3.6)),
  ];
}

/** Pixels that a text takes, near enough to lay out a legend. */
const textWidth = (content) => content.length * 6.7;
const LEGEND_LINE = 20;

/**
 * Samples of lines with their names, in as many rows as it takes.
 *
 * @param items [{ label, colour, marker, dashes, width }]
 * @returns { svg, height }
 */
export function legend(items, { x, y, width }) {
  let [left, top] = [x, y];
  const parts = items.map((item) => {
    const size = 34 + textWidth(item.label) + 18;
    if (left + size > x + width && left > x) [left, top] = [x, top + LEGEND_LINE];
    const middle = top - 4;
    const part = [
      line(
        [
          [left, middle],
          [left + 26, middle],
        ],
        { ...item, marker: undefined },
      ),
      item.marker === undefined ? [] : marker(item.marker, left + 13, middle, item.colour, 4),
      text(left + 33, top, item.label),
    ];
    left += size;
    return part;
  });
  return { svg: parts, height: top - y + LEGEND_LINE };
}

/** Frame, grid lines and labels of a panel. @param ticks [{ at, label }] @param box { left, right, top, bottom } */
export function axes({ left, right, top, bottom }, { xTicks, yTicks, xTitle, yTitle }) {
  return [
    yTicks.map(({ at, label }) => [
      element("path", { d: `M${left} ${round(at)}H${right}`, class: "grid" }),
      label === undefined ? [] : text(left - 8, at + 4, label, { class: "soft", anchor: "end" }),
    ]),
    xTicks.map(({ at, label }) => [
      element("path", { d: `M${round(at)} ${bottom}v4`, class: "axis" }),
      label === undefined ? [] : text(at, bottom + 18, label, { class: "soft", anchor: "middle" }),
    ]),
    element("path", { d: `M${left} ${bottom}H${right}`, class: "axis" }),
    xTitle === undefined
      ? []
      : text((left + right) / 2, bottom + 38, xTitle, { class: "soft", anchor: "middle" }),
    yTitle === undefined
      ? []
      : text(left - 46, (top + bottom) / 2, yTitle, {
          class: "soft",
          anchor: "middle",
          turned: -90,
        }),
  ];
}
