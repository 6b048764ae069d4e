"""What is compiled: every kernel, for which types, with which tile, on which architecture.

A table and nothing else. Tiles were chosen by measurement on H200s and H100s (sm_90); the other architectures take the
same shapes where their shared memory allows, and have not been timed.
"""

from dataclasses import replace

from .decode_packed import decode_packed_variants
from .packed import packed_variants
from .products import (
    DECODE_SECOND,
    MANY_TILES,
    ROUTING_EXPERTS,
    decode_first,
    decode_routing,
    decode_second,
    project,
    project_many,
)
from .router import (
    GATE_AMOUNTS,
    GATES,
    ROUTED_EXPERTS,
    bucket_variant,
    gate_few_variant,
    gate_variant,
    mark_variant,
    route_variant,
    tidy_variant,
)
from .rows import combine_variant, concat_variant, fill_variant, pack_variant
from .variant import ELEMENTS, PADDING

ARCHITECTURES = (80, 90, 100, 120)
# Compiled to PTX as well, for a driver to finish on architectures that are not in the bundle.
PTX_ARCHITECTURE = 80
# One height of tiles is enough there: a kernel takes lists of lower tiles as well.
PTX_ROWS = 64
# L2 promotion of tensor maps, as cuTensorMapEncodeTiled numbers it: 128 bytes are fetched at a time. Weights lie in panels, of
# which a tile reads kilobytes in one piece. With 256 bytes steps that wait for them take 2 to 8 % more on an H200 (321 us became
# 346 for 16 tokens of 32 experts of 48 MiB), and as long on an H100.
L2_PROMOTION = 2
# Dependent launches came with sm_90.
DEPENDENT_FROM = 90

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
            found += [
                project_many(element, gated, rows, bias)
                for rows in MANY_TILES
                for gated in (True, False)
                for bias in (False, True)
            ]
        for extras in extras_or_not:
            for block_m, tile in tiles["first"].items():
                found.append(project(element, True, "logistic", tile, extras=extras, ptx=block_m == PTX_ROWS))
            for block_m, tile in tiles["second"].items():
                found.append(project(element, False, "identity", tile, extras=extras, ptx=block_m == PTX_ROWS))
        for block_m, tile in tiles["coded"].items():
            for gated in (True, False):
                found.append(project(element, gated, "coded", tile, ptx=block_m == PTX_ROWS))
    if architecture == 90:
        found += packed_variants() + decode_packed_variants()
    for block_m, tile in tiles["float32"].items():
        for precision in ("ieee", "tf32"):
            for gated in (True, False):
                found.append(project("float32", gated, "coded", tile, precision=precision, ptx=block_m == PTX_ROWS))
    for element in ELEMENTS:
        found.append(decode_first(element, True, "logistic"))
        if architecture >= DEPENDENT_FROM and element != "float32":
            found += [decode_routing(element, experts) for experts in ROUTING_EXPERTS]
        found.append(decode_first(element, True, "coded"))
        found.append(decode_first(element, False, "coded"))
        for out in dict.fromkeys((element, "float32")):
            for tile, k in DECODE_SECOND:
                found.append(decode_second(element, out, tile, k))
            for aligned in (True, False):
                found.append(combine_variant(element, out, aligned))
                found.append(concat_variant(element, out, aligned))
        for source in ELEMENTS:
            found.append(pack_variant(source, element))
        found.append(fill_variant(element))
    for experts in ROUTED_EXPERTS:
        for element in ELEMENTS:
            for plain in (True, False):
                found.append(route_variant(element, experts, plain))
        found.append(bucket_variant(experts))
    found.append(mark_variant())
    found.append(tidy_variant())
    for element, weights in GATES:
        found.append(gate_few_variant(element, weights))
        for amount in GATE_AMOUNTS[1:]:
            found.append(gate_variant(element, weights, amount))
    return [overlapping(variant, architecture) for variant in found]


def overlapping(variant, architecture):
    """The kernel as a dependent launch (overlap.py), if it is written for that and the architecture has such."""
    if "DEPENDENT" not in variant.function.arg_names:
        return variant
    dependent = architecture >= DEPENDENT_FROM
    return replace(variant, dependent=dependent, constants={**variant.constants, "DEPENDENT": dependent})
