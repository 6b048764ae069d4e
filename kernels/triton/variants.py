"""What is compiled: every kernel, for which types, with which tile, on which architecture.

A table and nothing else. Tiles were chosen by measurement on an H200 (sm_90); the other architectures take the
same shapes where their shared memory allows, and have not been timed.
"""

from dataclasses import dataclass, field

from triton.experimental.gluon.language import NVMMASharedLayout, bfloat16, float16

from experts import activation, combine, decode, fill, grouped, many, pack
from routing import bucket, gate, mark, route, tidy

# Every n, k and pitch of these kernels is a multiple of this many elements: see grouped.py.
PADDING = 64

ARCHITECTURES = (80, 90, 100, 120)
# Compiled to PTX as well, for a driver to finish on architectures that are not in the bundle.
PTX_ARCHITECTURE = 80
# One height of tiles is enough there: a kernel takes lists of lower tiles as well.
PTX_ROWS = 64
# L2 promotion of all tensor maps, as cuTensorMapEncodeTiled numbers it: 256 bytes. Up to 7 % of a whole step against 128
# bytes where weights come from memory (Mixtral-8x7B, 512 tokens, on an H100).
L2_PROMOTION = 3

ELEMENTS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}

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
    "code": "i32",
    "linear": "fp32",
    "cubic": "fp32",
    "limit": "fp32",
    "shift": "fp32",
}


@dataclass(frozen=True)
class Variant:
    """One kernel to compile."""

    name: str
    function: object
    # Triton type of each argument that is passed, in order.
    arguments: dict
    constants: dict
    # Arguments that the caller promises are multiples of 16 (integers) or 16-byte aligned (pointers).
    divisible: tuple
    num_warps: int
    num_stages: int
    # How to launch it: build.py adds what depends on the compiled code.
    grid: dict
    # What it is for: the loader picks by these.
    selects: dict = field(default_factory=dict)
    ptx: bool = False
    # A dependent launch (programmatic stream serialization): the kernel itself waits for the one before it.
    dependent: bool = False


# Sixteen-byte loads need these promises; all memory the driver hands out is 256-byte aligned.
PROJECT_DIVISIBLE = ("x", "w", "bias", "out", "n", "k", "x_pitch", "out_pitch")

# Tiles of so many rows get a block for each piece of work where the kernel has the whole device: pieces take unequal time,
# and the hardware deals them out better than a fixed walk; up to 5 % under skew.
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


def project(element, gated, activations, tile, *, precision="ieee", extras=True, ptx=False):
    """A grouped product; `tile` is (BLOCK_M, BLOCK_N, BLOCK_K, warps, stages, descriptor, flatten)."""
    block_m, block_n, block_k, warps, stages, descriptor, flatten = tile
    short = ELEMENTS[element]
    w = f"tensordesc<{short}[{block_n}, {block_k}]>" if descriptor else f"*{short}"
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
        },
        divisible=tuple(a for a in PROJECT_DIVISIBLE if not (descriptor and a == "w")),
        num_warps=warps,
        num_stages=stages,
        grid=persistent_tiles(block_n, covers=block_m == COVERING_ROWS),
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


# (BLOCK_M, BLOCK_N, BLOCK_K, warps, stages) of the products for many rows: four stages of 48 KiB and 32 KiB for the
# stores are what a block's shared memory holds. (For tiles of 64 rows this kernel was no faster than Triton's.)
MANY_TILE = (128, 256, 64, 8, 4)
GLUON_ELEMENTS = {"bfloat16": bfloat16, "float16": float16}


def project_many(element, gated):
    """The first product of a layer, which gathers its rows, if gated; else the second, whose rows lie in order."""
    block_m, block_n, block_k, warps, stages = MANY_TILE
    short = ELEMENTS[element]
    activations = "logistic" if gated else "identity"

    def descriptor(rows):
        layout = NVMMASharedLayout.get_default_for([rows, block_k], GLUON_ELEMENTS[element])
        return f"tensordesc<{short}[{rows}, {block_k}],{layout!r}>"

    described = ("w",) if gated else ("x", "w")
    x = f"*{short}" if gated else descriptor(block_m)
    return Variant(
        name=f"project_{'gated' if gated else 'plain'}_{activations}_{short}_many",
        function=many.project_many,
        arguments={"x": x, "w": descriptor(block_n), **PROJECT_ARGUMENTS, "out": f"*{short}"},
        constants={
            "GATED": gated,
            "ACTIVATION": ACTIVATION_SETS[activations].value,
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
            "gather": "x" not in described,
            "k": {"least": (stages - 1) * block_k},
        },
    )


def decode_first(element, gated, activations, *, rows=8, block_k=512, stages=3, warps=4):
    short = ELEMENTS[element]
    kind = "gated" if gated else "plain"
    return Variant(
        name=f"decode_first_{kind}_{activations}_{short}",
        function=decode.decode_first,
        arguments={
            "x": f"*{short}",
            "w": f"*{short}",
            "bias": "*fp32",
            "out": f"*{short}",
            "ids": "*i32",
            "input_scale": "*fp32",
            "tokens": "*i32",
            "n": "i32",
            "k": "i32",
            "x_pitch": "i32",
            "out_pitch": "i32",
            "top_k": "i32",
            "options": "i32",
            "code": "i32",
            "linear": "fp32",
            "cubic": "fp32",
            "limit": "fp32",
            "shift": "fp32",
        },
        constants={
            "GATED": gated,
            "ACTIVATION": ACTIVATION_SETS[activations].value,
            "ROWS": rows,
            "BLOCK_K": block_k,
            "STAGES": stages,
        },
        divisible=("x", "w", "bias", "out", "n", "k", "x_pitch", "out_pitch"),
        num_warps=warps,
        num_stages=3,
        grid={"rule": "cover", "words": f"x = slots the buffers have room for; y = n / {rows}; z = 1",
              "x": "slots", "y": {"of": "n", "by": rows}},
        selects={"operator": "decode_first", "element": element, "gated": gated, "activations": activations},
        ptx=True,
    )


# decode_second's shapes by the width it reads: (rows, BLOCK_K, stages, warps). With little to read, many small programs;
# with much, fewer that read longer.
DECODE_SECOND = {"short": (2, 1024, 3, 2), "long": (8, 512, 3, 4)}
DECODE_SHORT = 1024


def decode_second(element, out, length):
    short, out_short = ELEMENTS[element], ELEMENTS[out]
    rows, block_k, stages, warps = DECODE_SECOND[length]
    return Variant(
        name=f"decode_second_{short}_{out_short}_{length}",
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
        },
        constants={"ROWS": rows, "BLOCK_K": block_k, "STAGES": stages},
        divisible=("x", "w", "bias", "n", "k", "x_pitch", "row_pitch"),
        num_warps=warps,
        num_stages=3,
        grid={"rule": "cover", "words": f"x = tokens the buffers have room for; y = n / {rows}; z = 1",
              "x": "tokens", "y": {"of": "n", "by": rows}},
        selects={
            "operator": "decode_second",
            "element": element,
            "output": out,
            "k": {"most": DECODE_SHORT} if length == "short" else {"least": DECODE_SHORT + 1},
        },
        ptx=True,
    )


def combine_variant(element, out, aligned, *, block=256, unroll=8, warps=1):
    short, out_short = ELEMENTS[element], ELEMENTS[out]
    return Variant(
        name=f"combine_{short}_{out_short}{'' if aligned else '_any'}",
        function=combine.combine,
        arguments={
            "rows": f"*{short}",
            "inverse": "*i32",
            "weights": "*fp32",
            "shared": f"*{short}",
            "shared_scale": "*fp32",
            "residual": f"*{short}",
            "out": f"*{out_short}",
            "tokens": "*i32",
            "width": "i32",
            "row_pitch": "i32",
            "top_k": "i32",
            "options": "i32",
        },
        constants={"BLOCK": block, "UNROLL": unroll},
        divisible=("rows", "shared", "residual", "out", "row_pitch") + (("width",) if aligned else ()),
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
        },
        constants={"BLOCK": block},
        divisible=("destination", "n", "k"),
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


# Element types of a gate's rows and weights.
GATES = (
    ("bfloat16", "bfloat16"),
    ("float16", "float16"),
    ("float32", "float32"),
    ("bfloat16", "float32"),
    ("float16", "float32"),
)
# Most tokens of gate_few and of the small tiles. The tiles walk through a row in one go, which takes them 29 us for 2048
# columns on an H200 however few tokens there are; gate_few needs 3 us for 4 tokens and grows with them.
GATE_FEW, GATE_SOME = 64, 512
# (BLOCK_M, BLOCK_N, BLOCK_K, warps, stages), by whether weights are float32.
GATE_TILES = {
    "some": {False: (16, 16, 128, 2, 5), True: (16, 16, 64, 2, 5)},
    "many": {False: (64, 64, 64, 4, 4), True: (64, 64, 32, 4, 3)},
}


def _gate_arguments(element, weights):
    return {
        "x": f"*{ELEMENTS[element]}",
        "w": f"*{ELEMENTS[weights]}",
        "bias": "*fp32",
        "out": "*fp32",
        "tokens": "*i32",
        "n": "i32",
        "k": "i32",
        "x_pitch": "i32",
        "options": "i32",
    }


def gate_few_variant(element, weights, *, block_k=2048, stages=3, warps=4):
    return Variant(
        name=f"gate_{ELEMENTS[element]}_{ELEMENTS[weights]}_few",
        function=gate.gate_few,
        arguments=_gate_arguments(element, weights),
        constants={"BLOCK_K": block_k, "STAGES": stages},
        divisible=("x", "w", "k", "x_pitch"),
        num_warps=warps,
        num_stages=3,
        grid={"rule": "cover", "words": "x = n; y = tokens the buffers have room for; z = 1",
              "x": {"of": "n", "by": 1}, "y": {"of": "most_tokens", "by": 1}},
        selects={"operator": "gate", "element": element, "weights": weights, "tokens": {"most": GATE_FEW}},
        ptx=True,
    )  # fmt: skip


def gate_variant(element, weights, amount):
    block_m, block_n, block_k, warps, stages = GATE_TILES[amount][weights == "float32"]
    tokens = {"least": GATE_FEW + 1, "most": GATE_SOME} if amount == "some" else {"least": GATE_SOME + 1}
    return Variant(
        name=f"gate_{ELEMENTS[element]}_{ELEMENTS[weights]}_{amount}",
        function=gate.gate,
        arguments=_gate_arguments(element, weights),
        constants={"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "STAGES": stages},
        divisible=("x", "w", "k", "x_pitch"),
        num_warps=warps,
        num_stages=stages,
        grid={"rule": "cover", "words": f"x = ceil(n / {block_n}); y = ceil(most_tokens / {block_m}); z = 1",
              "x": {"of": "n", "by": block_n}, "y": {"of": "most_tokens", "by": block_m}},
        selects={"operator": "gate", "element": element, "weights": weights, "tokens": tokens},
        ptx=True,
    )  # fmt: skip


def mark_variant(block=256):
    return Variant(
        name="mark",
        function=mark.mark,
        arguments={
            "ids": "*i32",
            "tokens": "*i32",
            "sets": "*i32",
            "experts": "i32",
            "padded_experts": "i32",
            "top_k": "i32",
        },
        constants={"BLOCK": block},
        divisible=(),
        num_warps=4,
        num_stages=1,
        grid={"rule": "cover", "words": f"x = ceil(slots / {block}), slots = most_tokens * top_k; y = z = 1",
              "x": {"of": "slots", "by": block}},
        selects={"operator": "mark"},
        ptx=True,
    )  # fmt: skip


def tidy_variant(block=1024):
    return Variant(
        name="tidy",
        function=tidy.tidy,
        arguments={
            "counts": "*i32",
            "out": "*i32",
            "counts_host": "*i32",
            "clear": "*i32",
            "fault": "*i32",
            "fault_host": "*i32",
            "experts": "i32",
            "clear_words": "i32",
            "options": "i32",
        },
        constants={"BLOCK": block},
        divisible=(),
        num_warps=4,
        num_stages=1,
        grid={"rule": "cover", "words": f"x = ceil(words / {block}), words = max(experts, clear_words); y = z = 1",
              "x": {"of": "words", "by": block}},
        selects={"operator": "tidy"},
        ptx=True,
    )  # fmt: skip


# Experts are padded to one of these. A row is a warp's, so that reductions over it stay in the warp: not below 32.
ROUTED_EXPERTS = (32, 64, 128, 256, 512, 1024)


# Dependent launches came with this architecture.
DEPENDENT_FROM = 90


def route_variant(element, experts, plain, architecture):
    short = ELEMENTS[element]
    return Variant(
        name=f"route_{'plain_' if plain else ''}{short}_experts{experts}",
        function=route.route,
        arguments={
            "logits": f"*{short}",
            "bias": "*fp32",
            "tokens": "*i32",
            "ids": "*i32",
            "weights": "*fp32",
            "sets": "*i32",
            "counts": "*i32",
            "fault": "*i32",
            "experts": "i32",
            "top_k": "i32",
            "most_tokens": "i32",
            "scoring": "i32",
            "options": "i32",
            "groups": "i32",
            "keep": "i32",
            "scale": "fp32",
            "jitter": "fp32",
        },
        constants={"EXPERTS": experts, "ROWS": route.ROWS, "PLAIN": plain, "DEPENDENT": architecture >= DEPENDENT_FROM},
        divisible=(),
        num_warps=route.ROWS,
        num_stages=1,
        grid={"rule": "cover", "words": f"x = ceil(most_tokens / {route.ROWS}); y = z = 1",
              "x": {"of": "most_tokens", "by": route.ROWS}},
        selects={"operator": "route", "element": element, "experts": experts, "plain": plain},
        # The other one can do all that a plain one does.
        ptx=not plain,
    )


# Words of the sets that a program of `bucket` reads at once: enough loads in flight, and registers for the counts.
BUCKET_STEP = 4096
BUCKET_WARPS = 4
# Programs that share a work list.
BUCKET_SHARES = 4


def bucket_variant(experts, architecture):
    return Variant(
        name=f"bucket_experts{experts}",
        function=bucket.bucket,
        arguments={
            "ids": "*i32",
            "sets": "*i32",
            "tokens": "*i32",
            "lane_of": "*i32",
            "lists": "*i32",
            "counts": "*i32",
            "offsets": "*i32",
            "order": "*i32",
            "inverse": "*i32",
            "tiles": "*i32",
            "tile_counts": "*i32",
            "capacity_factor": "fp64",
            "experts": "i32",
            "top_k": "i32",
            "most_tokens": "i32",
            "lanes": "i32",
            "classes": "i32",
            "fill_programs": "i32",
        },
        constants={
            "EXPERTS": experts,
            "SLOTS": bucket.MOST_SLOTS,
            "WORDS_A_STEP": BUCKET_STEP // experts,
            "DEPENDENT": architecture >= DEPENDENT_FROM,
        },
        divisible=("sets", "tiles"),
        num_warps=BUCKET_WARPS,
        num_stages=1,
        grid={
            "rule": "bucket",
            "words": f"x = fill_programs + {BUCKET_SHARES} * lanes * classes, fill_programs = min(multiprocessors,"
            " ceil(most_tokens / 32)); y = z = 1",
            "tokens_per_word": route.WORD_TOKENS.value,
            "shares_of_a_list": BUCKET_SHARES,
        },
        selects={"operator": "bucket", "experts": experts},
        ptx=True,
        dependent=architecture >= DEPENDENT_FROM,
    )


# (BLOCK_M, BLOCK_N, BLOCK_K, warps, stages, descriptor, flatten)
SMALL_TILES = {
    "coded": {128: (128, 64, 64, 8, 4, False, False), 64: (64, 64, 64, 4, 4, False, False)},
    "float32": {64: (64, 64, 32, 4, 3, False, False), 16: (16, 64, 32, 4, 3, False, False)},
}
TILES_90 = {
    "first": {
        128: (128, 256, 64, 8, 4, True, True),
        64: (64, 256, 64, 8, 4, True, True),
        16: (16, 64, 256, 4, 3, True, False),
    },
    "second": {
        128: (128, 256, 64, 8, 3, True, True),
        64: (64, 128, 64, 4, 4, True, True),
        16: (16, 64, 128, 4, 3, True, False),
    },
    **SMALL_TILES,
}
# Without wgmma a tile's accumulators and operands share the registers, and sm_120 has 99 KiB of shared memory
# for a block: 128 x 128 is as large as a tile gets. Weights are read through pointers.
PLAIN_TILES = {
    128: (128, 128, 64, 8, 3, False, False),
    64: (64, 128, 64, 4, 3, False, False),
    16: (16, 128, 64, 4, 4, False, False),
}
TILES_OTHER = {"first": PLAIN_TILES, "second": PLAIN_TILES, **SMALL_TILES}
TILES = {80: TILES_OTHER, 90: TILES_90, 100: TILES_OTHER, 120: TILES_OTHER}


def variants(architecture):
    """All that is compiled for sm_<architecture>."""
    tiles = TILES[architecture]
    # Bias and input scale take about 2 % of a second product's time even where there are none. Kernels without them
    # are worth their bytes on the architecture that was measured.
    extras_or_not = (False, True) if architecture == 90 else (True,)
    found = []
    for element in ("bfloat16", "float16"):
        if architecture == 90:
            # In front of the others: of kernels for the same, the device takes the first.
            found += [project_many(element, gated) for gated in (True, False)]
        for extras in extras_or_not:
            for block_m, tile in tiles["first"].items():
                found.append(project(element, True, "logistic", tile, extras=extras, ptx=block_m == PTX_ROWS))
            for block_m, tile in tiles["second"].items():
                found.append(project(element, False, "identity", tile, extras=extras, ptx=block_m == PTX_ROWS))
        for block_m, tile in tiles["coded"].items():
            for gated in (True, False):
                found.append(project(element, gated, "coded", tile, ptx=block_m == PTX_ROWS))
    for block_m, tile in tiles["float32"].items():
        for precision in ("ieee", "tf32"):
            for gated in (True, False):
                found.append(project("float32", gated, "coded", tile, precision=precision, ptx=block_m == PTX_ROWS))
    for element in ELEMENTS:
        found.append(decode_first(element, True, "logistic"))
        found.append(decode_first(element, True, "coded"))
        found.append(decode_first(element, False, "coded"))
        for out in dict.fromkeys((element, "float32")):
            for length in DECODE_SECOND:
                found.append(decode_second(element, out, length))
            for aligned in (True, False):
                found.append(combine_variant(element, out, aligned))
                found.append(concat_variant(element, out, aligned))
        for source in ELEMENTS:
            found.append(pack_variant(source, element))
        found.append(fill_variant(element))
    for experts in ROUTED_EXPERTS:
        for element in ELEMENTS:
            for plain in (True, False):
                found.append(route_variant(element, experts, plain, architecture))
        found.append(bucket_variant(experts, architecture))
    found.append(mark_variant())
    found.append(tidy_variant())
    for element, weights in GATES:
        found.append(gate_few_variant(element, weights))
        for amount in GATE_TILES:
            found.append(gate_variant(element, weights, amount))
    return found
