/** What one kernel of a made bundle is (made-variants.ts), and what all families of them share. */

export type Json = Record<string, unknown>;

export const SHORT = { bfloat16: "bf16", float16: "fp16", float32: "fp32" } as const;
export type Element = keyof typeof SHORT;
export const ELEMENTS = Object.keys(SHORT) as Element[];
export const EXPERTS = [32, 64, 128, 256, 512, 1024];
export const ROUTING_EXPERTS = [32, 64, 128, 256];
/** Weight rows and columns that a program of decode's first product has at a time. */
export const FIRST_TILE = "16x256";
/** A kernel of one architecture, as the build describes it. */
export interface Variant {
  name: string;
  args: [name: string, type: string, divisible?: number | null][];
  grid: Json;
  selects: Json;
  /** Boxes of the arguments that are tensor maps. */
  maps?: Readonly<Record<string, readonly number[]>>;
  shared?: number;
  warps?: number;
}

/** "a:i32 b:*fp32/16" */
export function parse(text: string): Variant["args"] {
  return text.split(/\s+/).map((word) => {
    const [name = "", rest = ""] = word.split(":");
    const [type = "", divisible] = rest.split("/");
    return [name, type, divisible === undefined ? null : Number(divisible)];
  });
}

/** The arguments of a descriptor with so many dimensions. */
export function descriptor(name: string, dimensions: number): string {
  const each = Array.from({ length: dimensions }, (_, d) => d);
  const shapes = each.map((d) => `${name}_shape${d}:i32`);
  const strides = each.map((d) => `${name}_stride${d}:i64`);
  return [`${name}:tensormap`, ...shapes, ...strides].join(" ");
}

/** Of a kernel that tidies up; with a prefix, where it has work of its own. */
export const tidying = (prefix: string) =>
  "counts:*i32 out:*i32 counts_host:*i32 fault:*i32 fault_host:*i32 experts:i32 options:i32".replace(
    /(\S+)/g,
    `${prefix}$1`,
  );

export const ACTIVATION = "code:i32 linear:fp32 cubic:fp32 limit:fp32 shift:fp32";
