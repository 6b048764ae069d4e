/** The kernels of a made bundle (made-bundle.ts): those that the real build makes, with its argument lists and grid rules. */

import { decodes, packedDecodes } from "./made-decodes.ts";
import {
  ACTIVATION,
  descriptor,
  ELEMENTS,
  type Element,
  EXPERTS,
  type Json,
  parse,
  SHORT,
  tidying,
  type Variant,
} from "./made-variant.ts";

function project(
  element: Element,
  gated: boolean,
  activations: string,
  rows: number,
  columns: number,
  extras: boolean,
  precision: string,
  box?: readonly number[],
): Variant {
  const short = SHORT[element];
  const w = box === undefined ? `w:*${short}/16` : descriptor("w", box.length);
  return {
    name: `project_${gated ? "gated" : "plain"}_${activations}${extras ? "_extras" : ""}_${precision === "tf32" ? "tf32" : short}_rows${rows}`,
    args: parse(
      `x:*${short}/16 ${w} bias:*fp32/16 out:*${short}/16 tiles:*i32 tile_count:*i32 order:*i32 input_scale:*fp32 n:i32/16 k:i32/16 x_pitch:i32/16 out_pitch:i32/16 top_k:i32 dense_matrix:i32 group:i32 options:i32 ${ACTIVATION}`,
    ),
    grid: { rule: "persistent", columns_per_block: columns, blocks_per_multiprocessor: 1 },
    selects: {
      operator: "project",
      element,
      gated,
      activations,
      rows_per_tile: rows,
      precision,
      extras,
      gather: true,
      k: { least: 64 },
    },
    ...(box && { maps: { w: box } }),
    shared: 200 * rows,
    warps: 8,
  };
}

function projectMany(
  element: Element,
  gated: boolean,
  rows: number,
  columns: number,
  bias: boolean,
): Variant {
  const k = { least: 192 };
  const activations = gated ? "logistic" : "identity";
  const box = [columns, 64];
  const own = project(element, gated, activations, rows, columns, false, "ieee", box);
  return {
    ...own,
    name: own.name.replace("rows", "many").replace(/(?=_[a-z0-9]+_many)/, bias ? "_bias" : ""),
    args: gated ? own.args : [...parse(descriptor("x", 2)), ...own.args.slice(1)],
    selects: {
      ...own.selects,
      gather: gated,
      ...(bias && { bias }),
      ...(gated && rows === 64 && { in_step: true }),
      k,
    },
    maps: { ...(!gated && { x: [rows, 64] }), w: box },
  };
}

function projectPacked(gated: boolean, rows: number, bias: boolean): Variant {
  const form = `${gated ? "gated_logistic" : "plain_identity"}${bias ? "_bias" : ""}`;
  const x = gated ? "x:*bf16/16" : descriptor("x", 2);
  return {
    name: `project_${form}_bf16_packed${rows}`,
    args: parse(
      `${x} ${descriptor("w", 4)} scales:*fp32/16 flags:*i32/16 patches:*i64/16 bias:*fp32/16 out:*bf16/16 tiles:*i32 tile_count:*i32 order:*i32 n:i32/16 k:i32/16 x_pitch:i32/16 out_pitch:i32/16 top_k:i32 options:i32 ${ACTIVATION}`,
    ),
    grid: { rule: "persistent", columns_per_block: 128, blocks_per_multiprocessor: 1 },
    selects: {
      operator: "project_packed",
      element: "bfloat16",
      gated,
      activations: gated ? "logistic" : "identity",
      rows_per_tile: rows,
      bias,
      gather: gated,
      k: { least: 64 },
    },
    maps: { ...(!gated && { x: [rows, 64] }), w: [2, 1, 16, 32] },
    warps: 12,
  };
}

/** What there is for packed weights, on sm_90a alone. */
function packing(): Variant[] {
  return [
    {
      name: "pack_weights_bf16",
      args: parse(
        "source:*bf16/16 words:*i32/16 scales:*fp32 flags:*i32 patches:*i64 failures:*i32 matrices:i32 n:i32/16 k:i32/16 valid_columns:i32",
      ),
      grid: { rule: "persistent", columns_per_block: 16, blocks_per_multiprocessor: 4 },
      selects: { operator: "pack_weights", element: "bfloat16" },
    },
    ...[128, 64, 32].flatMap((rows) =>
      [true, false].flatMap((gated) =>
        [true, false].map((bias) => projectPacked(gated, rows, bias)),
      ),
    ),
    ...packedDecodes(),
  ];
}

function projects(arch: string): Variant[] {
  const found: Variant[] = [];
  const own = arch === "sm_90a";
  const heights = arch === "ptx" ? [64] : [128, 64, 16];
  for (const element of ["bfloat16", "float16"] as const) {
    if (own) {
      for (const gated of [true, false]) {
        for (const bias of [false, true]) {
          found.push(projectMany(element, gated, 128, 256, bias));
          found.push(projectMany(element, gated, 64, 128, bias));
          found.push(projectMany(element, gated, 32, 128, bias));
        }
      }
    }
    for (const extras of own ? [false, true] : [true]) {
      for (const rows of heights) {
        const columns = rows < 64 ? 128 : 256;
        // Low tiles read two panels in a step.
        const box = rows < 64 ? [1, 2, columns, 64] : [columns, 64];
        const map = own ? box : undefined;
        found.push(project(element, true, "logistic", rows, columns, extras, "ieee", map));
        found.push(project(element, false, "identity", rows, columns, extras, "ieee", map));
      }
    }
    for (const rows of arch === "ptx" ? [64] : [128, 64]) {
      for (const gated of [true, false]) {
        found.push(project(element, gated, "coded", rows, 64, true, "ieee"));
      }
    }
  }
  for (const rows of arch === "ptx" ? [64] : [64, 16]) {
    for (const precision of ["ieee", "tf32"]) {
      for (const gated of [true, false]) {
        found.push(project("float32", gated, "coded", rows, 64, true, precision));
      }
    }
  }
  return found;
}

function combines(element: Element): Variant[] {
  const short = SHORT[element];
  return [...new Set<Element>([element, "float32"])].flatMap((output) =>
    ["sum", "concat"].flatMap((mode) =>
      [true, false].map((aligned): Variant => {
        const extra =
          mode === "sum" ? `shared:*${short}/16 shared_scale:*fp32 residual:*${short}/16 ` : "";
        const [inner, pitch, along] =
          mode === "sum"
            ? [`inner:*${short}/16 `, "inner_pitch:i32/16 ", ` ${tidying("tidy_")}`]
            : ["", "", ""];
        return {
          name: `${mode === "sum" ? "combine" : mode}_${short}_${SHORT[output]}${aligned ? "" : "_any"}`,
          args: parse(
            `rows:*${short}/16 ${inner}inverse:*i32 weights:*fp32 ${extra}out:*${SHORT[output]}/16 tokens:*i32 width:i32${aligned ? "/16" : ""} row_pitch:i32/16 ${pitch}top_k:i32 options:i32${along}`,
          ),
          grid: {
            rule: "persistent",
            columns_per_block: mode === "sum" ? 256 : 1024,
            blocks_per_multiprocessor: 32,
          },
          selects: { operator: "combine", mode, element, output },
        };
      }),
    ),
  );
}

function others(arch: string): Variant[] {
  const found: Variant[] = [];
  const cover = (x: Json, y?: Json): Json => ({
    rule: "cover",
    x,
    ...(y && { y }),
    blocks_per_multiprocessor: 8,
  });
  for (const element of ELEMENTS) {
    const short = SHORT[element];
    for (const source of ELEMENTS) {
      found.push({
        name: `pack_${SHORT[source]}_${short}`,
        args: parse(
          `source:*${SHORT[source]} destination:*${short} rows:i32 columns:i32 row_stride:i64 column_stride:i64 row_step:i64 panel_step:i64 first_column:i32 pitch:i32`,
        ),
        grid: { rule: "persistent", columns_per_block: 1024, blocks_per_multiprocessor: 16 },
        selects: { operator: "pack", source, element },
      });
    }
    found.push({
      name: `fill_uniform_${short}`,
      args: parse(
        `destination:*${short}/16 seed:i64 matrices:i32 n:i32/16 k:i32/16 valid_rows:i32 valid_columns:i32 scale:fp32 row_step:i64/16 panel_step:i64/16`,
      ),
      grid: { rule: "persistent", columns_per_block: 1024, blocks_per_multiprocessor: 16 },
      selects: { operator: "fill", element },
    });
    for (const experts of EXPERTS) {
      for (const plain of arch === "ptx" ? [false] : [true, false]) {
        found.push({
          name: `route_${plain ? "plain_" : ""}${short}_experts${experts}`,
          args: parse(
            `logits:*${short} bias:*fp32 tokens:*i32 ids:*i32 weights:*fp32 sets:*i32 counts:*i32 fault:*i32 experts:i32 top_k:i32 most_tokens:i32 scoring:i32 options:i32 groups:i32 keep:i32 scale:fp32 jitter:fp32`,
          ),
          grid: cover({ of: "most_tokens", by: 8 }),
          selects: { operator: "route", element, experts, plain },
        });
      }
    }
    for (const weights of new Set<Element>([element, "float32"])) {
      for (const [amount, outputs, by] of [
        ["few", { most: 2048 }, [1, 1]],
        ["some", { least: 2049, most: 65536 }, [16, 16]],
        ["many", { least: 65537, most: 524288 }, [32, 64]],
        ["most", { least: 524289 }, [64, 128]],
      ] as const) {
        found.push({
          name: `gate_${short}_${SHORT[weights]}_${amount}`,
          args: parse(
            `x:*${short}/16 w:*${SHORT[weights]}/16 bias:*fp32 out:*fp32 tokens:*i32 n:i32 k:i32/16 x_pitch:i32/16 options:i32`,
          ),
          grid: cover({ of: "n", by: by[0] }, { of: "most_tokens", by: by[1] }),
          selects: { operator: "gate", element, weights, outputs },
        });
      }
    }
  }
  for (const experts of EXPERTS) {
    found.push({
      name: `bucket_experts${experts}`,
      args: parse(
        `ids:*i32 sets:*i32/16 tokens:*i32 lane_of:*i32 lists:*i32 counts:*i32 offsets:*i32 order:*i32 inverse:*i32 tiles:*i32/16 tile_counts:*i32 capacity_factor:fp64 experts:i32 top_k:i32 most_tokens:i32 lanes:i32 classes:i32 fill_programs:i32 ${tidying("tidy_")}`,
      ),
      grid: {
        rule: "bucket",
        tokens_per_word: 32,
        shares_of_a_list: 4,
        blocks_per_multiprocessor: 8,
      },
      selects: { operator: "bucket", experts },
    });
  }
  found.push({
    name: "mark",
    args: parse("ids:*i32 tokens:*i32 sets:*i32 experts:i32 padded_experts:i32 top_k:i32"),
    grid: cover({ of: "slots", by: 256 }),
    selects: { operator: "mark" },
  });
  found.push({
    name: "tidy",
    args: parse(tidying("")),
    grid: cover({ of: "experts", by: 100 }),
    selects: { operator: "tidy" },
  });
  return found;
}

/** All kernels of an architecture. */
export function variantsOf(arch: string): Variant[] {
  return [
    ...projects(arch),
    ...(arch === "sm_90a" ? packing() : []),
    ...ELEMENTS.flatMap((element) => decodes(element, arch)),
    ...ELEMENTS.flatMap(combines),
    ...others(arch),
  ];
}
