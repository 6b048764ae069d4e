"""Products of experts on weights of 12 bits, and what packs them: experts/packed.py and pack_weights.py."""

from triton.experimental.gluon.language import NVMMASharedLayout

from experts import pack_weights, packed
from experts.packed_words import BLOCK_ROWS, PLANE_COLUMNS, PLANE_ROWS

from .products import ACTIVATION_SETS, PADDING, PROJECT_ARGUMENTS, persistent_tiles, row_descriptor
from .variant import ELEMENTS, Variant

# The only type that has so many bits of exponent and so few of mantissa.
ELEMENT = "bfloat16"
SHORT = ELEMENTS[ELEMENT]
# Arguments of other products, for what these do not do.
LEFT_OUT = ("input_scale", "dense_matrix", "group")
# (BLOCK_N, warp groups that multiply, stages, registers of a thread that multiplies and of one that asks) by the rows of a tile, of first
# and second products. As many stages as a block's shared memory holds beside the rows that are stored, seven at most (packed_ask.BOX);
# registers of twice the ones and once the others are 504, what 12 warps have, and of four times the ones 480, what 20 have. (Where those
# that ask are the default partition they get what is left.)
# Products on an H100, us, by 128 and by 256 columns, two groups: 64 tokens of qwen3-30b-a3b, tiles of 32, first 207 and 204, second 101
# and 106; of mixtral-8x7b, tiles of 64, 489 and 493, 241 and 282; 1024 of qwen3-30b-a3b with Zipf 1.5, tiles of 64, first 359 and 302; 64 of
# medium, which has few pieces, tiles of 32, 40 and 43, 22.8 and 24.5. Two blocks of 128 columns a multiprocessor, tiles of 32 and 64:
# 1 to 3 % more where products wait for weights. By 128 columns on tiles of 128, 4096 tokens of qwen3-30b-a3b, first 884 and 609.
# On an H200, by two groups (second products by 128 columns) and four (256): tiles of 32, 64 tokens of qwen3-30b-a3b, first 149 and
# 147, second 96 and 79; 16 of mixtral-8x7b 330 and 327, 185 and 170; 16 of large with Zipf 1.5 123 and 121, 85 and 92. Tiles of 64, for
# which four have to keep part of a piece in local memory, 256 of large 209 and 217, 108 and 110; with Zipf 1.5 250 and 256, 130 and 148;
# 64 of mixtral-8x7b 338 and 348, 181 and 171. Tiles of 128, 256 of mixtral-8x7b 453 and 478, 204 and 235.
FIRST_TILES = {128: (256, 2, 5, 224, 56), 64: (256, 2, 6, 200, 104), 32: (256, 4, 7, 104, 64)}
SECOND_TILES = {128: (256, 2, 5, 224, 56), 64: (128, 2, 7, 208, 88), 32: (256, 4, 7, 104, 64)}


def project_packed(gated, block_m, bias):
    """The first product of a layer, which gathers its rows, if gated; else the second, whose rows lie in order."""
    block_n, groups, stages, multiplying, asking = (FIRST_TILES if gated else SECOND_TILES)[block_m]
    activations = "logistic" if gated else "identity"
    words_box = [block_n // BLOCK_ROWS.value, 1, PLANE_ROWS.value, PLANE_COLUMNS.value]
    words = f"tensordesc<i32[{', '.join(map(str, words_box))}],{NVMMASharedLayout(128, 32, 4)!r}>"
    return Variant(
        name=f"project_{'gated' if gated else 'plain'}_{activations}_{'bias_' if bias else ''}{SHORT}_packed{block_m}",
        function=packed.project_packed,
        arguments={
            "x": f"*{SHORT}" if gated else row_descriptor(ELEMENT, block_m),
            "w": words,
            "scales": "*fp32",
            "flags": "*i32",
            "patches": "*i64",
            **{name: kind for name, kind in PROJECT_ARGUMENTS.items() if name not in LEFT_OUT},
            "out": f"*{SHORT}",
        },
        constants={
            "GATED": gated,
            "ACTIVATION": ACTIVATION_SETS[activations].value,
            "BIAS": bias,
            "X_DESCRIPTOR": not gated,
            "BLOCK_M": block_m,
            "BLOCK_N": block_n,
            "GROUPS": groups,
            "STAGES": stages,
            "MULTIPLYING_REGISTERS": multiplying,
            "ASKING_REGISTERS": asking,
        },
        divisible=(*(["x"] if gated else []), "scales", "flags", "patches", "bias", "out", "n", "k", "x_pitch", "out_pitch"),
        num_warps=packed.WARPS.value,
        num_stages=stages,
        grid=persistent_tiles(block_n),
        selects={
            "operator": "project_packed",
            "element": ELEMENT,
            "gated": gated,
            "activations": activations,
            "rows_per_tile": block_m,
            "bias": bias,
            "gather": gated,
            "k": {"least": PADDING},
        },
    )


def pack_weights_variant():
    return Variant(
        name=f"pack_weights_{SHORT}",
        function=pack_weights.pack_weights,
        arguments={
            "source": f"*{SHORT}",
            "words": "*i32",
            "scales": "*fp32",
            "flags": "*i32",
            "patches": "*i64",
            "failures": "*i32",
            "matrices": "i32",
            "n": "i32",
            "k": "i32",
            "valid_columns": "i32",
        },
        constants={},
        divisible=("source", "words", "n", "k"),
        num_warps=4,
        num_stages=1,
        grid=persistent_tiles(pack_weights.GROUP_ROWS.value),
        selects={"operator": "pack_weights", "element": ELEMENT},
    )


def packed_variants():
    products = [project_packed(gated, rows, bias) for rows in FIRST_TILES for gated in (True, False) for bias in (False, True)]
    return [*products, pack_weights_variant()]
