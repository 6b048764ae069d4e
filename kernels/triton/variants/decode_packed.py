"""Products of a few tokens on weights of 12 bits: experts/decode_packed.py and decode_packed_second.py."""

from dataclasses import replace

from experts import decode_packed, decode_packed_second as second_product
from experts.packed_words import GROUP_ROWS

from .packed import ELEMENT, SHORT
from .products import DECODE_SECOND, ROUTING_EXPERTS, decode_first, decode_routing, decode_second
from .variant import ELEMENTS

# What stands for weights.
TABLES = {"words": "*i32", "scales": "*fp32", "patches": "*i64"}
# Arguments of plain kernels, for what these do not do.
LEFT_OUT = ("input_scale",)
ROWS = GROUP_ROWS.value
DIVISIBLE = ("words", "scales", "patches", "bias", "n", "k", "x_pitch")
# (warps, panels that a warp asks for at once). Of 14 the first kernel's is within 5 % of the best for 1, 2 and 4 tokens of seven shapes
# (H100); where it routes, two warps look for their expert instead of four.
FIRST = (2, 4)
# The second one's, of which the device takes one whose programs fill it evenly, of several the first, as of decode_second. The first fits
# a multiprocessor once, so it is for no more programs than there are multiprocessors: 256 take 18.9 us with it and 16.4 with the second
# (2 tokens of qwen3-30b-a3b), 128 take 10.1 and 11.3. The one that is so chosen is within 6 % of the best of 14, for 1, 2 and 4 tokens of
# seven shapes; any of them by itself loses 16 to 45 % somewhere.
SECOND = ((16, 2), (8, 2), (8, 1), (16, 1))
# Of the one for several tokens together, likewise: of these three the one so chosen is within 3 % of the best on an H200, for 2 and 4 tokens of
# six shapes.
JOINT = ((16, 2), (16, 1), (8, 1))


def packed_arguments(arguments):
    """Arguments of a kernel on plain weights, with packed ones in their place."""
    return {
        name: kind
        for given, type_ in arguments.items()
        for name, kind in (TABLES if given == "w" else {given: type_}).items()
        if name not in LEFT_OUT
    }


def _packed(plain, function, name, warps, **more):
    """The kernel on packed weights that does what a plain one does."""
    y = plain.grid["y"]
    words = plain.grid["words"].replace(f"n / {y['by']}", f"n / {ROWS}")
    return replace(
        plain,
        name=name,
        function=function,
        arguments=packed_arguments(plain.arguments),
        divisible=DIVISIBLE,
        num_warps=warps,
        num_stages=1,
        grid={**plain.grid, "words": words, "y": {**y, "by": ROWS}},
        ptx=False,
        **more,
    )


def decode_packed_first(routing=None, joint=False):
    """Gated with a logistic; `routing`: the most experts that it routes along; `joint`: for several tokens, which it takes together."""
    warps, panels = FIRST
    plain = decode_first(ELEMENT, True, "logistic") if routing is None else decode_routing(ELEMENT, routing)
    return _packed(
        plain,
        decode_packed.decode_packed_first if routing is None else decode_packed.decode_packed_routing,
        f"decode_packed_{'first' if routing is None else f'routing{routing}'}_{'joint_' if joint else ''}{SHORT}",
        warps,
        constants={
            "ACTIVATION": plain.constants["ACTIVATION"],
            "JOINT": joint,
            "PANELS": panels,
            **{name: plain.constants[name] for name in ("EXPERTS", "TOKENS") if name in plain.constants},
            "WARPS": warps,
        },
        selects={**plain.selects, "operator": "decode_packed_first", "joint": joint},
    )


def decode_packed_second(out, tile):
    warps, panels = tile
    plain = decode_second(ELEMENT, out, DECODE_SECOND[0][0], {})
    return _packed(
        plain,
        second_product.decode_packed_second,
        f"decode_packed_second_{SHORT}_{ELEMENTS[out]}_{warps}x{panels}",
        warps,
        constants={"PANELS": panels, "WARPS": warps},
        selects={
            "operator": "decode_packed_second", "element": ELEMENT, "output": out, "k": {}, "one_wave": tile == SECOND[0],
            "joint": False,
        },
    )


def decode_packed_second_joint(out, tile):
    """For several tokens, which it takes together."""
    warps, panels = tile
    single = decode_packed_second(out, tile)
    grid = {"rule": "cover", "words": f"x = n / {ROWS}; y = 1; z = 1", "x": {"of": "n", "by": ROWS}}
    return replace(
        single,
        name=f"decode_packed_second_joint_{SHORT}_{ELEMENTS[out]}_{warps}x{panels}",
        function=second_product.decode_packed_second_joint,
        grid=grid,
        selects={**single.selects, "joint": True},
    )


def decode_packed_variants():
    firsts = [decode_packed_first(routing, joint) for joint in (False, True) for routing in (None, *ROUTING_EXPERTS)]
    outputs = (ELEMENT, "float32")
    seconds = [decode_packed_second(out, tile) for out in outputs for tile in SECOND]
    return firsts + seconds + [decode_packed_second_joint(out, tile) for out in outputs for tile in JOINT]
