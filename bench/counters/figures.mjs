/**
 * Which counters are asked for, and what becomes of them: kernels in the order of their launches
 * to the steps that they are of, each with its figures. Runs nothing; measure.mjs does.
 *
 * What a counter cannot say is told beside the figures and not guessed. Names are those of sm_90;
 * ncu does not know every one of them on every card, and some it knows and cannot count.
 */

import { isRead, numberIn, readPage } from "../ncu/page.mjs";

const share = (metric) => ({ metric, measure: "share" });
const bytes = (metric) => ({ metric, measure: "bytes" });
const count = (metric) => ({ metric, measure: "count" });

/** Name of a figure: the metric that it is, and what that measures. */
export const FIGURES = {
  us: { metric: "gpu__time_duration.sum", measure: "microseconds" },
  smHertz: { metric: "sm__cycles_elapsed.avg.per_second", measure: "hertz" },

  // Device memory.
  dramReadBytes: bytes("dram__bytes_read.sum"),
  dramWrittenBytes: bytes("dram__bytes_write.sum"),

  // L2: all that it serves; its busiest part; how much of it was there.
  l2Bytes: bytes("lts__t_bytes.sum"),
  l2Share: share("lts__throughput.avg.pct_of_peak_sustained_elapsed"),
  l2Hits: share("lts__t_sector_hit_rate.pct"),

  // From L2 to the multiprocessors, whoever asks, and what the tensor memory accelerator asked for.
  toSmBytes: bytes("l1tex__m_xbar2l1tex_read_bytes.sum"),
  toSmShare: share("l1tex__m_xbar2l1tex_read_bytes.sum.pct_of_peak_sustained_elapsed"),
  toSmByTmaBytes: bytes("l1tex__m_xbar2l1tex_read_bytes_mem_global_op_tma_ld.sum"),

  // Tensor cores: of all the time, and of the time that a multiprocessor has blocks.
  tensorShare: share("sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed"),
  tensorShareActive: share("sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active"),
  // Instructions of warps (mma) and of groups of four (wgmma): which of the two is used.
  mmaIssueShare: share("sm__inst_executed_pipe_tensor_op_hmma.avg.pct_of_peak_sustained_active"),
  wgmmaIssueShare: share("sm__inst_executed_pipe_tensor_op_gmma.avg.pct_of_peak_sustained_active"),

  // Shared memory, which is in the banks of the first cache: what banks read and write, and of it
  // what ordinary instructions (not TMA, not wgmma) ask for.
  bankReadShare: share("l1tex__data_bank_reads.avg.pct_of_peak_sustained_elapsed"),
  bankWriteShare: share("l1tex__data_bank_writes.avg.pct_of_peak_sustained_elapsed"),
  sharedShare: share(
    "l1tex__data_pipe_lsu_wavefronts_mem_shared.avg.pct_of_peak_sustained_elapsed",
  ),
  bankConflicts: count("l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum"),

  // Issue slots taken, and warps there of those that there could be.
  issueShare: share("smsp__issue_active.avg.pct_of_peak_sustained_active"),
  warpShare: share("sm__warps_active.avg.pct_of_peak_sustained_active"),

  // Known at the launch: blocks that a multiprocessor has room for, by what.
  registers: count("launch__registers_per_thread"),
  blocksByRegisters: count("launch__occupancy_limit_registers"),
  blocksByShared: count("launch__occupancy_limit_shared_mem"),
};

export const METRICS = Object.values(FIGURES).map(({ metric }) => metric);

/** Kernels of a step from logits to output, by the beginning of their names. */
export const KERNELS = ["route", "bucket", "project", "decode", "combine"];
/** A step begins with one of these, and has no other of them. */
const FIRST = new Set(["route", "decode_routing"]);

/** What every product of a step is called besides. */
const PRODUCT = /^project/;
const PLACES = ["first", "second", "third"];

/**
 * The steps of a profile, in order.
 *
 * @param page as ncu prints it
 * @param dataSheetTBs bandwidth that shares are of; null where it is not known
 * @returns { steps: lists of kernels with their figures, absent: [{ metric, reason }] }
 * @throws Error if kernels come before the first step, or a figure has the unit of something else
 */
export function stepsOf(page, dataSheetTBs) {
  const steps = [];
  /** Kernels by metric and reason. */
  const lacking = new Map();
  for (const launch of readPage(page)) {
    if (FIRST.has(launch.kernel)) steps.push([]);
    const step = steps.at(-1);
    if (step === undefined)
      throw new Error(`${launch.kernel} ran before the first of ${[...FIRST].join(" and ")}.`);
    const { label, ...grid } = placed(launch, step);
    const { figures, lacks } = figuresOf(launch);
    for (const { metric, reason } of lacks) {
      const key = JSON.stringify({ metric, reason });
      lacking.set(key, new Set([...(lacking.get(key) ?? []), label]));
    }
    step.push({
      kernel: launch.kernel,
      label,
      ...grid,
      ...figures,
      ...ofDram(figures, dataSheetTBs),
    });
  }
  const labels = new Set(steps.flat().map(({ label }) => label));
  const absent = [...lacking].map(([key, without]) => {
    const { metric, reason } = JSON.parse(key);
    const where = without.size === labels.size ? "" : ` (${[...without].join(", ")})`;
    return { metric, reason: `${reason}${where}` };
  });
  return { steps, absent };
}

/** What a kernel is called in its step, and how it was launched. */
function placed({ kernel, columns }, step) {
  const before = step.filter((each) => PRODUCT.test(each.kernel)).length;
  const label = PRODUCT.test(kernel)
    ? `${kernel}, ${PLACES[before] ?? before + 1} product`
    : kernel;
  const extent = (name) => columns.get(name)?.text;
  return { label, grid: extent("Grid Size"), block: extent("Block Size") };
}

function figuresOf({ kernel, columns }) {
  const figures = {};
  const lacks = [];
  for (const [name, { metric, measure }] of Object.entries(FIGURES)) {
    const cell = columns.get(metric);
    if (cell === undefined) lacks.push({ metric, reason: "ncu has no column of it" });
    else if (!isRead(cell)) lacks.push({ metric, reason: `ncu says "${cell.text}"` });
    else figures[name] = numberIn(cell, measure, `${metric} of ${kernel}`);
  }
  return { figures, lacks };
}

function ofDram({ us, dramReadBytes, dramWrittenBytes }, dataSheetTBs) {
  const moved = (dramReadBytes + dramWrittenBytes) / (us * 1e6);
  return Number.isFinite(moved) && dataSheetTBs ? { dramShare: moved / dataSheetTBs } : {};
}
