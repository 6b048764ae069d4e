/** The kernels of `decode` in a made bundle, on plain weights and on packed ones. */

import {
  ACTIVATION,
  type Element,
  FIRST_TILE,
  type Json,
  parse,
  ROUTING_EXPERTS,
  SHORT,
  tidying,
  type Variant,
} from "./made-variant.ts";

export function decodes(element: Element, arch: string): Variant[] {
  const short = SHORT[element];
  const first = (gated: boolean, activations: string, routing = 0): Variant => ({
    name: `decode_${routing ? `routing${routing}` : "first"}_${gated ? "gated" : "plain"}_${activations}_${short}_${FIRST_TILE}`,
    args: parse(
      `x:*${short}/16 w:*${short}/16 bias:*fp32/16 out:*${short}/16 ids:*i32 ${routing ? "" : "input_scale:*fp32 "}tokens:*i32 ${
        routing
          ? "logits:*fp32 logits_kind:i32 weights:*fp32 counts:*i32 counts_host:*i32 fault:*i32 fault_host:*i32 scoring:i32 route_options:i32 scale:fp32 experts:i32 most_tokens:i32 "
          : ""
      }n:i32/16 k:i32/16 x_pitch:i32/16 out_pitch:i32/16 top_k:i32 options:i32 ${ACTIVATION}`,
    ),
    grid: {
      rule: "cover",
      x: "slots",
      y: { of: "n", by: Number.parseInt(FIRST_TILE, 10), ...(routing > 0 && { more: 1 }) },
      blocks_per_multiprocessor: 7,
    },
    selects: {
      operator: "decode_first",
      element,
      gated,
      activations,
      routes: routing > 0,
      ...(routing > 0 && { experts: { most: routing } }),
    },
  });
  const second = (
    output: Element,
    rows: number,
    columns: number,
    blocks: number,
    k: Json,
  ): Variant => ({
    name: `decode_second_${short}_${SHORT[output]}_${rows}x${columns}`,
    args: parse(
      `x:*${short}/16 w:*${short}/16 bias:*fp32/16 ids:*i32 weights:*fp32 shared:*${short} shared_scale:*fp32 residual:*${short} out:*${SHORT[output]} tokens:*i32 width:i32 n:i32/16 k:i32/16 x_pitch:i32/16 row_pitch:i32/16 top_k:i32 options:i32 ${tidying("tidy_")}`,
    ),
    grid: {
      rule: "cover",
      x: "tokens",
      y: { of: "n", by: rows },
      blocks_per_multiprocessor: blocks,
    },
    selects: { operator: "decode_second", element, output, rows, columns, k },
  });
  return [
    first(true, "logistic"),
    ...(arch === "sm_90a" && element !== "float32" ? ROUTING_EXPERTS : []).map((routing) =>
      first(true, "logistic", routing),
    ),
    first(true, "coded"),
    first(false, "coded"),
    ...[...new Set<Element>([element, "float32"])].flatMap((output) => [
      second(output, 4, 1024, 10, { most: 8192 }),
      second(output, 2, 1024, 11, { least: 1025, most: 8192 }),
      second(output, 4, 256, 26, {}),
    ]),
  ];
}

/** Of decodes(), those of bfloat16 with packed weights in their place. */
export function packedDecodes(): Variant[] {
  const packed = ({ name, args, grid, selects }: Variant): Variant => ({
    name,
    args: args
      .filter(([argument]) => argument !== "input_scale")
      .flatMap((each) =>
        each[0] === "w" ? parse("words:*i32/16 scales:*fp32/16 patches:*i64/16") : [each],
      ),
    grid,
    selects,
  });
  const plain = decodes("bfloat16", "sm_90a");
  const firsts = plain.filter(({ name }) => /_(first|routing\d+)_gated_logistic_/.test(name));
  const sums = plain.filter(({ name }) => name.endsWith("_4x1024"));
  const tile = (sum: Variant, warps: number, panels: number, blocks: number): Variant => ({
    ...packed(sum),
    name: sum.name.replace("decode", "decode_packed").replace("4x1024", `${warps}x${panels}`),
    grid: { ...sum.grid, y: { of: "n", by: 16 }, blocks_per_multiprocessor: blocks },
    selects: {
      operator: "decode_packed_second",
      element: "bfloat16",
      output: sum.selects["output"],
      k: {},
      one_wave: blocks === 1,
      joint: false,
    },
    warps,
  });
  const joint = (single: Variant): Variant => ({
    ...single,
    name: single.name.replace("second", "second_joint"),
    grid: { ...single.grid, x: { of: "n", by: 16 }, y: undefined },
    selects: { ...single.selects, joint: true },
  });
  const seconds = sums.flatMap((sum) => [
    tile(sum, 16, 2, 1),
    tile(sum, 8, 2, 3),
    tile(sum, 8, 1, 5),
    tile(sum, 16, 1, 2),
  ]);
  return [
    ...[false, true].flatMap((joint) =>
      firsts.map((first) => ({
        ...packed(first),
        name: first.name
          .replace("decode", "decode_packed")
          .replace(`gated_logistic_bf16_${FIRST_TILE}`, joint ? "joint_bf16" : "bf16"),
        selects: { ...first.selects, operator: "decode_packed_first", joint },
      })),
    ),
    ...seconds,
    ...sums.flatMap((sum) =>
      [tile(sum, 16, 2, 1), tile(sum, 16, 1, 2), tile(sum, 8, 1, 4)].map(joint),
    ),
  ];
}
