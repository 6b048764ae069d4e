/** The first lines of the report: who is fastest where, every cell that is lost, and the bars. */

import { heading, list, NONE, paragraph, table } from "./document.mjs";
import { COMMON_PEER, LEAST_NOISE } from "./figures.mjs";
import { cellName, number, percent, plural, ratio } from "./format.mjs";

export function leadBlocks(figures, bars) {
  const { device, compared, lost, failedCells, warnings } = figures;
  const failures = failedCells.map((cell) => `${cellName(cell)}: ${cell.failed}`);
  return [
    heading(1, `Nexus beside its peers on ${article(device.name)}`),
    paragraph(fastestText(figures)),
    ...(compared.length === 0 ? [] : lossBlocks(lost)),
    ...(failures.length === 0
      ? []
      : [paragraph(`**${plural(failures.length, "cell")} failed:**`), list(failures)]),
    ...warnings.map((warning) => paragraph(`**Mind:** ${warning}`)),
    ...(compared.length === 0 ? [] : [heading(2, "Bars"), barTable(bars)]),
  ];
}

function lossBlocks(lost) {
  if (lost.length === 0) {
    return [paragraph("No peer is faster than Nexus beyond the noise in any cell.")];
  }
  return [
    paragraph(
      `**A peer is faster beyond the noise in ${plural(lost.length, "cell")}.** In brackets, how much longer Nexus takes:`,
    ),
    list(lost.map(lossText)),
  ];
}

const article = (name) => (/^NVIDIA /.test(name) ? `an ${name}` : name);

function fastestText({ compared, cells, fastest, clearlyFastest, overBestPeer, overCommonPeer }) {
  if (compared.length === 0) return "These results hold no cell beside peers.";
  const common =
    overCommonPeer === undefined ? "" : ` and ${ratio(overCommonPeer)} over ${COMMON_PEER}`;
  const without = cells.length - compared.length;
  return [
    `**Nexus is the fastest in ${fastest.length} of ${plural(compared.length, "cell")}**`,
    `(in ${clearlyFastest.length} of them beyond the noise),`,
    `**with a geometric mean of ${ratio(overBestPeer)} over the best peer of each cell**${common}.`,
    `Noise of a cell is how far two measurements of Nexus in the same rounds are apart, and at least ${percent(LEAST_NOISE)}.`,
    ...(without === 0
      ? []
      : [`${plural(without, "cell")} without Nexus or without a peer left out.`]),
  ].join(" ");
}

function lossText({ name, nexus, beatenBy }) {
  const peers = beatenBy.map(
    ({ label, us }) => `${label} ${number(us)} us (${percent(nexus.us / us - 1)})`,
  );
  return `${name}: Nexus ${number(nexus.us)} us, ${peers.join(", ")}`;
}

export function barTable(bars) {
  return table(
    [{ title: "bar", wraps: true }, { title: "" }, { title: "measured", wraps: true }],
    bars.map(({ bar, met, figure }) => [
      bar,
      met === undefined ? NONE : met ? "met" : "**missed**",
      figure,
    ]),
  );
}
