/** The first lines of the report: who is fastest where, every cell that is lost, and the bars. */

import { heading, list, NONE, paragraph, table } from "./document.mjs";
import {
  COMMON_PEER,
  energyGroups,
  energyOf,
  groupBy,
  HOST_PACE_US,
  isNexus,
  LEAST_NOISE,
  LEAST_OFF_PACE,
} from "./figures.mjs";
import { cellName, number, percent, plural, ratio } from "./format.mjs";
import { geometricMean } from "./statistics.mjs";

/** What a reader would take for somebody else's code and is not: said before its figures are. */
const REBUILT = [
  {
    peer: COMMON_PEER,
    text: `**vLLM itself is not run.** ${COMMON_PEER} is its fused-MoE schedule rebuilt in Triton; every cell has the fastest of several tile settings (peers/tile_tables.py).`,
  },
  {
    peer: "scattermoe-schedule",
    text: "**ScatterMoE itself is not run.** scattermoe-schedule is its schedule rebuilt in Triton; every cell has the fastest of several settings (peers/scatter.py).",
  },
];

/** What a reader may look for among the peers, and what it is called if it is there. */
const LOOKED_FOR = [{ peer: "openai-triton_kernels", name: "OpenAI's triton_kernels" }];

/** What Nexus has that its peers do not, by how it keeps its weights. */
const KEPT = {
  true: "Nexus keeps the experts' weights packed into 12 bits, without loss; its peers read 16 bits a weight.",
  beside:
    "Nexus keeps the experts' weights twice, as they are and packed into 12 bits without loss, 28 bits a weight, and reads the packed ones where that takes less time; its peers have 16 bits a weight.",
};
const RANDOM = "These are random weights; a trained layer's may need more patches or be refused.";

export function leadBlocks(figures, bars) {
  const { device, compared, lost, failedCells, missingCells, warnings } = figures;
  const failures = failedCells.map((cell) => `${cellName(cell)}: ${cell.failed}`);
  return [
    heading(1, `Nexus beside its peers on ${article(device.name)}`),
    paragraph(fastestText(figures)),
    ...peerBlocks(compared),
    ...keptBlocks(figures),
    ...rebuiltBlocks([...figures.cells, ...figures.loopCells]),
    ...notMeasuredBlocks(figures),
    ...hostPacedBlocks(figures),
    ...(compared.length === 0 ? [] : [...lossBlocks(lost), ...bestPeerBlocks(compared)]),
    ...energyLossBlocks(figures.cells),
    ...(failures.length === 0
      ? []
      : [paragraph(`**${plural(failures.length, "cell")} failed:**`), list(failures)]),
    ...(missingCells.length === 0
      ? []
      : [
          paragraph(`**${plural(missingCells.length, "cell")} of these parts not attempted:**`),
          list(missingCells.map(cellName)),
        ]),
    ...warnings.map((warning) => paragraph(`**Mind:** ${warning}`)),
    ...(compared.length === 0 ? [] : [heading(2, "Bars"), barTable(bars)]),
  ];
}

function keptBlocks({ packWeights = false }) {
  return packWeights === false ? [] : [paragraph(`**${KEPT[packWeights]}** ${RANDOM}`)];
}

function rebuiltBlocks(cells) {
  const names = new Set(cells.flatMap(({ contenders }) => contenders.map(({ name }) => name)));
  const texts = REBUILT.filter(({ peer }) => names.has(peer)).map(({ text }) => text);
  return texts.length === 0 ? [] : [paragraph(texts.join(" "))];
}

/** Who takes part: "fastest" is over these. */
function peerBlocks(compared) {
  if (compared.length === 0) return [];
  const { everywhere, elsewhere } = peersIn(compared);
  const others = elsewhere.map(({ name, count }) => `${name} in ${plural(count, "cell")}`);
  return [
    paragraph(
      [
        `**${peersText(everywhere)} in every cell**`,
        everywhere.length === 0 ? "." : `: ${everywhere.join(", ")}.`,
        ...(others.length === 0 ? [] : [` Beside them ${others.join(", ")}.`]),
      ].join(""),
    ),
  ];
}

const WORDS = ["No", "One", "Two", "Three", "Four", "Five"];

export function peersText({ length }) {
  return `${WORDS[length] ?? length} peer${length === 1 ? "" : "s"}`;
}

/** @returns { everywhere: names of peers that every cell has; elsewhere: [{ name, count }] of the others } */
export function peersIn(cells) {
  const counts = groupBy(
    cells.flatMap(({ peers }) => [...new Set(peers.map(({ name }) => name))].toSorted()),
    (name) => name,
  ).map(([name, { length }]) => ({ name, count: length }));
  return {
    everywhere: counts.flatMap(({ name, count }) => (count === cells.length ? [name] : [])),
    elsewhere: counts.filter(({ count }) => count < cells.length),
  };
}

export function notMeasuredBlocks({ cells, loopCells }) {
  const names = new Set(
    [...cells, ...loopCells].flatMap((cell) => cell.contenders.map(({ name }) => name)),
  );
  const absent = LOOKED_FOR.filter(({ peer }) => !names.has(peer)).map(({ name }) => name);
  return absent.length === 0
    ? []
    : [paragraph(`**Not measured in these results:** ${absent.join(", ")}.`)];
}

function hostPacedBlocks({ hostPaced, surelyOverBestPeer, surelyOverCommonPeer }) {
  if (hostPaced.length === 0) return [];
  const without = [
    ...(surelyOverBestPeer === undefined
      ? []
      : [`${ratio(surelyOverBestPeer)} over the best peer`]),
    ...(surelyOverCommonPeer === undefined
      ? []
      : [`${ratio(surelyOverCommonPeer)} over ${COMMON_PEER}`]),
  ];
  return [
    paragraph(
      [
        `**In ${plural(hostPaced.length, "cell")} the best peer's time may be its host's**, and Nexus less far in front than it seems:`,
        `a graph of less than ${HOST_PACE_US} us, about as long as Python takes to hand one over, in bursts that did not wait until they were queued.`,
        ...(without.length === 0
          ? []
          : [`Without these cells the geometric mean is **${without.join(" and ")}**.`]),
      ].join(" "),
    ),
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

/** Who the best peer is, and by how much Nexus leads on each shape: one mean over all of them hides both. */
function bestPeerBlocks(compared) {
  const counts = groupBy(compared, ({ bestPeer }) => bestPeer.label)
    .toSorted(([, a], [, b]) => b.length - a.length)
    .map(([label, cells]) => `${label} in ${plural(cells.length, "cell")}`);
  const means = groupBy(compared, ({ shape }) => shape).map(
    ([shape, cells]) => `${shape} ${ratio(geometricMean(cells.map(({ speedup }) => speedup)))}`,
  );
  return [
    paragraph(
      `The best peer is ${counts.join(", ")}. Geometric means over it by shape: ${means.join(", ")}.`,
    ),
  ];
}

/** Cells where a peer does the same step with fewer joules. */
function energyLossBlocks(cells) {
  const isOurs = ({ contender }) => isNexus({ name: contender });
  const groups = energyGroups(energyOf(cells)).filter(
    ([, group]) => group.some(isOurs) && group.length > 1,
  );
  if (groups.length === 0) return [];
  const losses = groups.flatMap(([name, group]) => {
    const least = group.reduce((best, each) => (each.perStep < best.perStep ? each : best));
    if (isOurs(least)) return [];
    const [nexus, peer] = [group.find(isOurs), least].map(
      ({ perStep }) => `${number(perStep * 1e3)} mJ`,
    );
    const more = percent(1 / least.overNexus - 1);
    return [`${name}: Nexus ${nexus}, ${least.label} ${peer} (${more})`];
  });
  const measured = `the ${plural(groups.length, "cell")} whose energy was measured`;
  const waited = waitedBlocks(groups, cells);
  if (losses.length === 0) {
    return [
      ...waited,
      paragraph(
        `No peer that was measured takes less energy for a step in any of ${measured}: of the peers that is the fastest, and the fastest loop.`,
      ),
    ];
  }
  return [
    ...waited,
    paragraph(
      `**A peer takes less energy for a step in ${losses.length} of ${measured}**, by what the card draws in all while steps follow each other, its host's pauses included. In brackets, how much more Nexus takes:`,
    ),
    list(losses),
  ];
}

/** Groups whose windows launched a graph a step, in which a peer's steps waited longer between two of them than Nexus's. */
export function waitedIn(groups, cells) {
  const unpaced = new Set(cells.filter(({ paced }) => !paced).map(cellName));
  return groups.filter(([name, group]) => {
    const ours = group.find(({ contender }) => isNexus({ name: contender }));
    const graphs = group.filter(({ mode, offPace }) => mode !== "eager" && offPace !== undefined);
    const most = Math.max(...graphs.map(({ offPace }) => offPace));
    return unpaced.has(name) && most - (ours.offPace ?? 0) >= LEAST_OFF_PACE;
  });
}

function waitedBlocks(groups, cells) {
  const waited = waitedIn(groups, cells);
  if (waited.length === 0) return [];
  return [
    paragraph(
      `**In ${waited.length} of the ${plural(groups.length, "cell")} whose energy was measured a peer's joules contain waiting**: against its latency a step in the window took ${percent(LEAST_OFF_PACE)} or more longer than Nexus's did against Nexus's. There Nexus saves less than it seems.`,
    ),
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
