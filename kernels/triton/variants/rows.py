"""Rows and weights outside of products: aggregation, layout and noise: experts/combine.py, pack.py and fill.py."""

from experts import combine, fill, pack
from routing import tidy

from .variant import ELEMENTS, Variant


def combine_variant(element, out, aligned, *, block=256, unroll=8, warps=1):
    short, out_short = ELEMENTS[element], ELEMENTS[out]
    return Variant(
        name=f"combine_{short}_{out_short}{'' if aligned else '_any'}",
        function=combine.combine,
        arguments={
            "rows": f"*{short}",
            "inner": f"*{short}",
            "inverse": "*i32",
            "weights": "*fp32",
            "shared": f"*{short}",
            "shared_scale": "*fp32",
            "residual": f"*{short}",
            "out": f"*{out_short}",
            "tokens": "*i32",
            "width": "i32",
            "row_pitch": "i32",
            "inner_pitch": "i32",
            "top_k": "i32",
            "options": "i32",
            **tidy.ARGUMENTS_OF_OTHERS,
        },
        constants={"BLOCK": block, "UNROLL": unroll},
        divisible=("rows", "inner", "shared", "residual", "out", "row_pitch", "inner_pitch") + (("width",) if aligned else ()),
        num_warps=warps,
        num_stages=1,
        grid={
            "rule": "persistent",
            "words": "x = min(multiprocessors of the budget * blocks_per_multiprocessor, tokens the buffers have room"
            f" for * ceil(width / {block})); y = z = 1",
            "columns_per_block": block,
        },
        selects={"operator": "combine", "mode": "sum", "element": element, "output": out},
        ptx=True,
    )


def concat_variant(element, out, aligned, block=1024):
    short, out_short = ELEMENTS[element], ELEMENTS[out]
    return Variant(
        name=f"concat_{short}_{out_short}{'' if aligned else '_any'}",
        function=combine.concat,
        arguments={
            "rows": f"*{short}",
            "inverse": "*i32",
            "weights": "*fp32",
            "out": f"*{out_short}",
            "tokens": "*i32",
            "width": "i32",
            "row_pitch": "i32",
            "top_k": "i32",
            "options": "i32",
        },
        constants={"BLOCK": block},
        divisible=("rows", "out", "row_pitch") + (("width",) if aligned else ()),
        num_warps=4,
        num_stages=1,
        grid={
            "rule": "persistent",
            "words": "x = min(multiprocessors of the budget * blocks_per_multiprocessor, slots the buffers have room"
            f" for * ceil(width / {block})); y = z = 1",
            "columns_per_block": block,
        },
        selects={"operator": "combine", "mode": "concat", "element": element, "output": out},
        ptx=True,
    )


def pack_variant(source, destination, block=1024):
    return Variant(
        name=f"pack_{ELEMENTS[source]}_{ELEMENTS[destination]}",
        function=pack.pack_rows,
        arguments={
            "source": f"*{ELEMENTS[source]}",
            "destination": f"*{ELEMENTS[destination]}",
            "rows": "i32",
            "columns": "i32",
            "row_stride": "i64",
            "column_stride": "i64",
            "row_step": "i64",
            "panel_step": "i64",
            "first_column": "i32",
            "pitch": "i32",
        },
        constants={"BLOCK": block},
        divisible=(),
        num_warps=4,
        num_stages=1,
        grid={
            "rule": "persistent",
            "words": "x = min(multiprocessors of the budget * blocks_per_multiprocessor, rows"
            f" * ceil(pitch / {block})); y = z = 1",
            "columns_per_block": block,
        },
        selects={"operator": "pack", "source": source, "element": destination},
        ptx=True,
    )


def fill_variant(element, block=1024):
    return Variant(
        name=f"fill_uniform_{ELEMENTS[element]}",
        function=fill.fill_uniform,
        arguments={
            "destination": f"*{ELEMENTS[element]}",
            "seed": "i64",
            "matrices": "i32",
            "n": "i32",
            "k": "i32",
            "valid_rows": "i32",
            "valid_columns": "i32",
            "scale": "fp32",
            "row_step": "i64",
            "panel_step": "i64",
        },
        constants={"BLOCK": block},
        divisible=("destination", "n", "k", "row_step", "panel_step"),
        num_warps=4,
        num_stages=1,
        grid={
            "rule": "persistent",
            "words": "x = min(multiprocessors of the budget * blocks_per_multiprocessor, matrices * valid_rows"
            f" * ceil(valid_columns / {block})); y = z = 1",
            "columns_per_block": block,
        },
        selects={"operator": "fill", "element": element},
        ptx=True,
    )
