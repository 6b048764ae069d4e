"""From tokens to buckets: the gates, and all of routing/."""

from routing import bucket, gate, mark, route, tidy

from .variant import ELEMENTS, Variant

# Element types of a gate's rows and weights.
GATES = (
    ("bfloat16", "bfloat16"),
    ("float16", "float16"),
    ("float32", "float32"),
    ("bfloat16", "float32"),
    ("float16", "float32"),
)
# What a gate takes depends on how its products are made: of 16 bits each, of a bfloat16 and the three parts of a float32
# (gate.py), or in ordinary float32 arithmetic.
#
# Most outputs, of all tokens, of gate_few, which has a program for each and takes longer with every one; and of the tiles, the
# lowest first. Measured on an H100 from 5 to 8192 tokens: 8 outputs of 4096 columns, 32 of 2880, 128 of 2048, 256 of 7168.
GATE_MOST = {
    "halves": {"few": 2048, "some": 65536, "many": 524288},
    "parts": {"few": 4096, "some": 65536, "many": 262144},
    "floats": {"few": 8192, "some": 65536, "many": 262144},
}
# (BLOCK_M, BLOCK_N, BLOCK_K, warps, stages). Low tiles are many programs, each of which asks for much of its rows at a time.
GATE_TILES = {
    "halves": {"some": (16, 16, 512, 2, 3), "many": (64, 32, 128, 4, 4), "most": (128, 64, 64, 8, 4)},
    "parts": {"some": (16, 32, 256, 4, 3), "many": (64, 16, 128, 4, 3), "most": (64, 64, 64, 4, 3)},
    "floats": {"some": (16, 16, 64, 2, 5), "many": (32, 32, 64, 4, 4), "most": (64, 64, 32, 4, 3)},
}
# From the fewest outputs to the most.
GATE_AMOUNTS = ("few", "some", "many", "most")


def _gate_products(element, weights):
    if weights != "float32":
        return "halves"
    return "parts" if element == "bfloat16" else "floats"


def _gate_selects(element, weights, amount):
    most = GATE_MOST[_gate_products(element, weights)]
    place = GATE_AMOUNTS.index(amount)
    outputs = {}
    if place > 0:
        outputs["least"] = most[GATE_AMOUNTS[place - 1]] + 1
    if amount in most:
        outputs["most"] = most[amount]
    return {"operator": "gate", "element": element, "weights": weights, "outputs": outputs}


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
        selects=_gate_selects(element, weights, "few"),
        ptx=True,
    )  # fmt: skip


def gate_variant(element, weights, amount):
    block_m, block_n, block_k, warps, stages = GATE_TILES[_gate_products(element, weights)][amount]
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
        selects=_gate_selects(element, weights, amount),
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
        arguments=tidy.ARGUMENTS,
        constants={"BLOCK": block},
        divisible=(),
        num_warps=4,
        num_stages=1,
        grid={"rule": "cover", "words": f"x = ceil(experts / {block}); y = z = 1",
              "x": {"of": "experts", "by": block}},
        selects={"operator": "tidy"},
        ptx=True,
    )  # fmt: skip


# Experts are padded to one of these. A row is a warp's, so that reductions over it stay in the warp: not below 32.
ROUTED_EXPERTS = (32, 64, 128, 256, 512, 1024)


def route_variant(element, experts, plain):
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
        constants={"EXPERTS": experts, "ROWS": route.ROWS, "PLAIN": plain},
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


def bucket_variant(experts):
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
            **tidy.ARGUMENTS_OF_OTHERS,
        },
        constants={
            "EXPERTS": experts,
            "SLOTS": bucket.MOST_SLOTS,
            "WORDS_A_STEP": BUCKET_STEP // experts,
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
    )
