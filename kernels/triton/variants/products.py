"""Products of many experts at once, and of a few tokens: experts/grouped.py, many.py and decode.py."""

from dataclasses import replace

from triton.experimental.gluon.language import NVMMASharedLayout, bfloat16, float16

from experts import activation, decode, grouped, many
from routing import bucket, tidy

from .variant import ELEMENTS, PADDING, Variant

# What an activation is told by (experts/activation.py).
ACTIVATION_ARGUMENTS = {"code": "i32", "linear": "fp32", "cubic": "fp32", "limit": "fp32", "shift": "fp32"}
PROJECT_ARGUMENTS = {
    "bias": "*fp32",
    "out": None,
    "tiles": "*i32",
    "tile_count": "*i32",
    "order": "*i32",
    "input_scale": "*fp32",
    "n": "i32",
    "k": "i32",
    "x_pitch": "i32",
    "out_pitch": "i32",
    "top_k": "i32",
    "dense_matrix": "i32",
    "group": "i32",
    "options": "i32",
    **ACTIVATION_ARGUMENTS,
}

# Sixteen-byte loads need these promises; all memory the driver hands out is 256-byte aligned.
PROJECT_DIVISIBLE = ("x", "w", "bias", "out", "n", "k", "x_pitch", "out_pitch")

# Tiles of at most so many rows get a block for each piece of work where the kernel has the whole device: pieces take unequal
# time, and the hardware deals them out better than a fixed walk; up to 5 % under skew.
COVERING_ROWS = 16

ACTIVATION_SETS = {"identity": activation.IDENTITY, "logistic": activation.LOGISTIC, "coded": activation.CODED}


def persistent_tiles(block_n, covers=False):
    pieces = f"tiles the list has room for * ceil(n / {block_n})"
    held = f"x = min(multiprocessors of the budget * blocks_per_multiprocessor, {pieces}); y = z = 1"
    return {
        "rule": "persistent",
        "words": f"{held}; where the budget is the whole device x = {pieces}" if covers else held,
        "columns_per_block": block_n,
        **({"covers": True} if covers else {}),
    }


def weight_box(block_n, block_k):
    """What a step reads of weights: of one panel some of all panels' rows, or of several of a matrix's."""
    if block_k == PADDING:
        return block_n, PADDING
    return 1, block_k // PADDING, block_n, PADDING


def project(element, gated, activations, tile, *, precision="ieee", extras=True, ptx=False):
    """A grouped product; `tile` is (BLOCK_M, BLOCK_N, BLOCK_K, warps, stages, descriptor, flatten)."""
    block_m, block_n, block_k, warps, stages, descriptor, flatten = tile
    short = ELEMENTS[element]
    w = f"tensordesc<{short}[{', '.join(map(str, weight_box(block_n, block_k)))}]>" if descriptor else f"*{short}"
    arguments = {"x": f"*{short}", "w": w, **PROJECT_ARGUMENTS, "out": f"*{short}"}
    kind = f"{'gated' if gated else 'plain'}_{activations}{'_extras' if extras else ''}"
    return Variant(
        name=f"project_{kind}_{short if precision == 'ieee' else 'tf32'}_rows{block_m}",
        function=grouped.project,
        arguments=arguments,
        constants={
            "GATED": gated,
            "ACTIVATION": ACTIVATION_SETS[activations].value,
            "EXTRAS": extras,
            "BLOCK_M": block_m,
            "BLOCK_N": block_n,
            "BLOCK_K": block_k,
            "DESCRIPTOR": descriptor,
            "PRECISION": precision,
            "FLATTEN": flatten,
            "MIXED": block_m >= bucket.BUSY_HEIGHT.value,
        },
        divisible=tuple(a for a in PROJECT_DIVISIBLE if not (descriptor and a == "w")),
        num_warps=warps,
        num_stages=stages,
        grid=persistent_tiles(block_n, covers=block_m <= COVERING_ROWS),
        selects={
            "operator": "project",
            "element": element,
            "gated": gated,
            "activations": activations,
            "rows_per_tile": block_m,
            "precision": precision,
            # What it can do, for products that need it and for those that do not.
            "extras": extras,
            "gather": True,
            "k": {"least": PADDING},
        },
        ptx=ptx,
    )


# (BLOCK_N, BLOCK_K, warps, stages) of the products for many rows, by BLOCK_M. Of 128 rows, four stages of 48 KiB and 32 KiB
# for the stores are what a block's shared memory holds. Of 64, with two blocks a multiprocessor, the second product's weights are
# asked for before the first one is done, which takes 1 % less of a step than Triton's kernel. The first one is faster only where
# programs go in step. Of 32, swapped, there are no others.
MANY_TILES = {128: (256, 64, 8, 4), 64: (128, 64, 4, 4), 32: (128, 64, 4, 4)}
GLUON_ELEMENTS = {"bfloat16": bfloat16, "float16": float16}


def row_descriptor(element, rows):
    """The Triton type of a tensor map over rows of a panel's columns, of which Gluon copies so many at a time."""
    layout = NVMMASharedLayout.get_default_for([rows, PADDING], GLUON_ELEMENTS[element])
    return f"tensordesc<{ELEMENTS[element]}[{rows}, {PADDING}],{layout!r}>"


def project_many(element, gated, block_m, bias=False):
    """The first product of a layer, which gathers its rows, if gated; else the second, whose rows lie in order."""
    block_n, block_k, warps, stages = MANY_TILES[block_m]
    short = ELEMENTS[element]
    activations = "logistic" if gated else "identity"
    described = ("w",) if gated else ("x", "w")
    x = f"*{short}" if gated else row_descriptor(element, block_m)
    return Variant(
        name=f"project_{'gated' if gated else 'plain'}_{activations}_{'bias_' if bias else ''}{short}_many{block_m}",
        function=many.project_many,
        arguments={"x": x, "w": row_descriptor(element, block_n), **PROJECT_ARGUMENTS, "out": f"*{short}"},
        constants={
            "GATED": gated,
            "ACTIVATION": ACTIVATION_SETS[activations].value,
            "BIAS": bias,
            "X_DESCRIPTOR": "x" in described,
            "BLOCK_M": block_m,
            "BLOCK_N": block_n,
            "BLOCK_K": block_k,
            "STAGES": stages,
        },
        divisible=tuple(a for a in PROJECT_DIVISIBLE if a not in described),
        num_warps=warps,
        num_stages=stages,
        grid=persistent_tiles(block_n),
        selects={
            "operator": "project",
            "element": element,
            "gated": gated,
            "activations": activations,
            "rows_per_tile": block_m,
            "precision": "ieee",
            "extras": False,
            **({"bias": True} if bias else {}),
            "gather": "x" not in described,
            # Only for products that go in step: without, Triton's kernel is as fast or up to 4 % faster.
            **({"in_step": True} if gated and block_m == 64 else {}),
            "k": {"least": (stages - 1) * block_k},
        },
    )


# decode_first's shape: (rows, BLOCK_K, warps). Of ten it is within 3 % of the best for matrices of more than 8 MiB, with 1, 2 and 4
# tokens, and within 11 % for smaller ones, whose products take 3 to 10 us (H100). A warp has eight loads of 512 bytes under way.
DECODE_FIRST = (16, 256, 2)


DECODE_FIRST_NUMBERS = {
    "n": "i32",
    "k": "i32",
    "x_pitch": "i32",
    "out_pitch": "i32",
    "top_k": "i32",
    "options": "i32",
    **ACTIVATION_ARGUMENTS,
}
DECODE_FIRST_DIVISIBLE = ("x", "w", "bias", "out", "n", "k", "x_pitch", "out_pitch")

# Most tokens that the runtime gives decode: DECODE_TOKENS of operators/decode.ts.
DECODE_TOKENS = 4
# Most experts of kernels that route as well. All programs look for their expert, so it matters how many a lane has: with 256, eight to
# a lane, a step of 4 tokens with 8 experts took 2 to 3 % longer than without.
ROUTING_EXPERTS = (32, 64, 128, 256)


def decode_first(element, gated, activations):
    short = ELEMENTS[element]
    kind = "gated" if gated else "plain"
    rows, block_k, warps = DECODE_FIRST
    return Variant(
        name=f"decode_first_{kind}_{activations}_{short}_{rows}x{block_k}",
        function=decode.decode_first,
        arguments={
            "x": f"*{short}",
            "w": f"*{short}",
            "bias": "*fp32",
            "out": f"*{short}",
            "ids": "*i32",
            "input_scale": "*fp32",
            "tokens": "*i32",
            **DECODE_FIRST_NUMBERS,
        },
        constants={
            "GATED": gated,
            "ACTIVATION": ACTIVATION_SETS[activations].value,
            "ROWS": rows,
            "BLOCK_K": block_k,
        },
        divisible=DECODE_FIRST_DIVISIBLE,
        num_warps=warps,
        num_stages=1,
        grid={"rule": "cover", "words": f"x = slots the buffers have room for; y = n / {rows}; z = 1",
              "x": "slots", "y": {"of": "n", "by": rows}},
        selects={
            "operator": "decode_first",
            "element": element,
            "gated": gated,
            "activations": activations,
            "routes": False,
        },
        ptx=True,
    )


def decode_routing(element, experts):
    """The same for gated products with a logistic, which routes up to so many experts along."""
    first = decode_first(element, True, "logistic")
    pointers = {name: kind for name, kind in first.arguments.items() if kind.startswith("*") and name != "input_scale"}
    rows = first.constants["ROWS"]
    return replace(
        first,
        name=first.name.replace("first", f"routing{experts}"),
        function=decode.decode_routing,
        arguments={
            **pointers,
            "logits": "*fp32",
            "logits_kind": "i32",
            "weights": "*fp32",
            "counts": "*i32",
            "counts_host": "*i32",
            "fault": "*i32",
            "fault_host": "*i32",
            "scoring": "i32",
            "route_options": "i32",
            "scale": "fp32",
            "experts": "i32",
            "most_tokens": "i32",
            **DECODE_FIRST_NUMBERS,
        },
        constants={**first.constants, "EXPERTS": experts, "TOKENS": DECODE_TOKENS, "WARPS": first.num_warps},
        grid={"rule": "cover", "words": f"x = slots the buffers have room for; y = 1 + n / {rows}; z = 1",
              "x": "slots", "y": {"of": "n", "by": rows, "more": 1}},
        selects={**first.selects, "routes": True, "experts": {"most": experts}},
        ptx=False,
    )


# decode_second's shapes: (rows, BLOCK_K, stages, warps), by the columns that they are for. The device takes one whose programs fill it
# evenly, of several the first (operators/choice.ts). On an H100 that one takes up to 6 % longer than the best of 14, 8 % in one cell of 27
# (4 tokens of medium), and up to 17 % where the L2 holds the weights; any of them by itself loses up to a quarter where a last
# wave of few programs has the GPU to itself. Rows of 14336 columns take 1 to 7 % longer by the first two than by the last.
DECODE_SECOND = (
    ((4, 1024, 3, 4), {"most": 8192}),
    ((2, 1024, 4, 2), {"least": 1025, "most": 8192}),
    ((4, 256, 4, 1), {}),
)


def decode_second(element, out, tile, k):
    short, out_short = ELEMENTS[element], ELEMENTS[out]
    rows, block_k, stages, warps = tile
    return Variant(
        name=f"decode_second_{short}_{out_short}_{rows}x{block_k}",
        function=decode.decode_second,
        arguments={
            "x": f"*{short}",
            "w": f"*{short}",
            "bias": "*fp32",
            "ids": "*i32",
            "weights": "*fp32",
            "shared": f"*{short}",
            "shared_scale": "*fp32",
            "residual": f"*{short}",
            "out": f"*{out_short}",
            "tokens": "*i32",
            "width": "i32",
            "n": "i32",
            "k": "i32",
            "x_pitch": "i32",
            "row_pitch": "i32",
            "top_k": "i32",
            "options": "i32",
            **tidy.ARGUMENTS_OF_OTHERS,
        },
        constants={"ROWS": rows, "BLOCK_K": block_k, "STAGES": stages},
        divisible=("x", "w", "bias", "n", "k", "x_pitch", "row_pitch"),
        num_warps=warps,
        num_stages=3,
        grid={"rule": "cover", "words": f"x = tokens the buffers have room for; y = n / {rows}; z = 1",
              "x": "tokens", "y": {"of": "n", "by": rows}},
        selects={"operator": "decode_second", "element": element, "output": out, "rows": rows, "columns": block_k, "k": k},
        ptx=True,
    )
