"""Checks of the kernels of experts/many.py: bit for bit what grouped.py's tiles of as many rows give, or of 64.

Part of test_experts.py, which holds both against float64. Whole outputs are compared, so that rows that are nobody's
are seen to stay as they were.
"""

import itertools
import random

import torch

import launch
from buckets import BEGUN, SPARE_TILES, Buckets, list_counts, with_room
from layout import paneled

DEVICE = "cuda"
# Rows of tiles.
HEIGHTS = (128, 64, 32)
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# (n, k, rows of each expert). n is rows of weights: 64 is less than a tile has, 320 and 448 no whole number of tiles.
# 192 is the least k.
SHAPES = (
    (64, 192, [1]),
    (128, 192, [0, 0, 5, 0]),
    (256, 256, [127, 128, 129, 1]),
    (320, 192, [300, 0, 17, 0, 650]),
    (448, 320, [0, 2000, 0]),
    (1024, 1088, [64, 65, 400, 3, 0, 511, 513]),
    (1536, 2048, [200] * 24),
)
NOBODYS_ROWS = 70
# Outputs have 8 bits or more, and few are rounded another way.
BIASED_TOLERANCE = 2e-3
# How a program comes by its next piece (experts/pieces.py).
PIECES = ("dealt", "in step", "claimed")
# So few pieces have been begun that no launch comes to any that it waits for.
NEVER = -(2**30)


def how(pieces):
    """That as options of launch.project."""
    return {"in_step": pieces == "in step", "claim": pieces == "claimed"}


def check_many(checks, bundle, multiprocessors):
    for short, dtype in TYPES.items():
        for n, k, counts in SHAPES:
            for gated, height in itertools.product((True, False), HEIGHTS):
                for gather in (True, False) if gated else (False,):
                    _check_lists(checks, bundle, short, dtype, gated, gather, height, n, k, counts, multiprocessors)
                _check_biases(checks, bundle, short, dtype, gated, height, n, k, counts, multiprocessors)
                _check_dense(checks, bundle, short, dtype, gated, height, n, k, sum(counts), multiprocessors)


def _operands(dtype, gated, matrices, n, k, rows):
    x = torch.randn(rows, k, device=DEVICE).to(dtype)
    w = paneled((torch.randn(matrices, n, k, device=DEVICE) * k**-0.5).to(dtype))
    return x, w, (rows, n // 2 if gated else n)


def _both(checks, bundle, short, dtype, gated, gather, height, what, out_shape, run, multiprocessors, dense=False):
    """`run`s both kernels into poisoned outputs: the one under test on all multiprocessors, on one, and on a few."""
    name = f"project_{'gated_logistic' if gated else 'plain_identity'}_{short}"
    outputs = []
    counted = () if dense else PIECES[1:]
    few, maybe = random.randrange(2, multiprocessors), random.choice(("dealt", *counted))
    runs = (
        (launch.tall_enough(bundle, name, height), multiprocessors, 8, False, "dealt"),
        (f"{name}_many{height}", multiprocessors, 8, False, "dealt"),
        (f"{name}_many{height}", multiprocessors, 8, True, "dealt"),
        *((f"{name}_many{height}", multiprocessors, 8, False, pieces) for pieces in counted),
        *((f"{name}_many{height}", 1, 3, True, pieces) for pieces in counted),
        (f"{name}_many{height}", few, random.randrange(1, 20), random.choice((False, True)), maybe),
    )
    for kernel, units, group, half_time, pieces in runs:
        out = torch.full(out_shape, float("nan"), device=DEVICE, dtype=dtype)
        activation = random.Random(what).choice(("silu", "gelu-tanh", "swiglu-clamped")) if gated else "none"
        options = {"group": group, "half_time": half_time, "pieces": pieces, "activation": activation}
        # What the L2 is told (l2.py): everything at least once, as nobody counts on chance.
        last = len(outputs) == len(runs) - 1
        options |= {"read_once": last or random.random() < 0.5, "keep": last or random.random() < 0.5}
        run(bundle[kernel], out, multiprocessors=units, **options)
        outputs.append(out)
        asked = f"{' gather' if gather else ''}{' half time' if half_time else ''} {pieces}"
        checks.same(f"{kernel} {what}{asked} on {units} in groups of {group}", outputs[0], out)


def _check_lists(checks, bundle, short, dtype, gated, gather, height, n, k, counts, multiprocessors):
    slots, top_k = sum(counts), 2 if gather else 1
    ids = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))[torch.randperm(slots)]
    buckets = Buckets(ids.to(DEVICE), len(counts), lambda count: height)
    x, w, (_, width) = _operands(dtype, gated, len(counts), n, k, -(-slots // top_k))
    tiles = buckets.tiles[height]
    # Any number of tiles may be said to be of busy experts: the kernel under test is told so, and the other one of none.
    unmixed = list_counts(len(tiles), 0, DEVICE)
    number = list_counts(len(tiles), random.randrange(len(tiles) + 1), DEVICE)

    def run(kernel, out, pieces, begun=0, **options):
        counted = (number if "_many" in kernel.entry["name"] else unmixed).clone()
        counted[BEGUN:] = begun
        launch.project(
            bundle, kernel, x, w, out, with_room(tiles), counted, most_tiles=len(tiles) + SPARE_TILES,
            order=buckets.order, gather=gather, top_k=top_k, **how(pieces), **options,
        )
        if begun == 0:
            # In step pieces are counted from the second round on; claims are none again. Gated products have the first word.
            blocks = options["multiprocessors"] * kernel.grid["blocks_per_multiprocessor"]
            later = max(counted[0].item() * -(-n // kernel.grid["columns_per_block"]) - blocks, 0) if pieces == "in step" else 0
            found = counted[BEGUN:].tolist()
            checks.that(f"{what} {pieces}: begun {found}", found == ([later, 0] if gated else [0, later]))

    shape = (slots + NOBODYS_ROWS, width)
    what = f"n {n} k {k} rows {counts}"
    _both(checks, bundle, short, dtype, gated, gather, height, what, shape, run, multiprocessors)
    # Programs that wait for others that never begin, as where not all are on the GPU at once, give up.
    name = f"project_{'gated_logistic' if gated else 'plain_identity'}_{short}_many{height}"
    alone, given_up = (torch.full(shape, float("nan"), device=DEVICE, dtype=dtype) for _ in range(2))
    activation = "silu" if gated else "none"
    run(bundle[name], alone, "dealt", multiprocessors=multiprocessors, activation=activation)
    run(bundle[name], given_up, "in step", begun=NEVER, multiprocessors=3, activation=activation)
    checks.same(f"{name} {what}, given up", alone, given_up)
    # Nothing on the list, though there is room for much.
    number = unmixed = torch.zeros_like(number)
    _both(checks, bundle, short, dtype, gated, gather, height, f"{what}, empty list", shape, run, multiprocessors)


def _check_biases(checks, bundle, short, dtype, gated, height, n, k, counts, multiprocessors):
    """With biases, which these kernels' sums begin with: all but rounding of what grouped.py gives, and the same bits however run."""
    slots = sum(counts)
    ids = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(DEVICE)
    buckets = Buckets(ids[:, None], len(counts), lambda count: height)
    x, w, (_, width) = _operands(dtype, gated, len(counts), n, k, slots)
    bias = torch.randn(len(counts), n, device=DEVICE)
    tiles, number = buckets.tiles[height], buckets.tile_counts[height]
    name = f"project_{'gated_logistic' if gated else 'plain_identity'}"
    kernels = [launch.tall_enough(bundle, f"{name}_extras_{short}", height), *[f"{name}_bias_{short}_many{height}"] * 3]
    few = random.randrange(2, multiprocessors)
    outputs = []
    walks = ("dealt", "dealt", random.choice(PIECES[1:]), random.choice(PIECES[1:]))
    for kernel, units, pieces in zip(kernels, (multiprocessors, multiprocessors, few, 1), walks):
        out = torch.full((slots, width), float("nan"), device=DEVICE, dtype=dtype)
        launch.project(
            bundle, bundle[kernel], x, w, out, tiles, number.clone(), most_tiles=len(tiles), multiprocessors=units,
            activation="silu" if gated else "none", order=buckets.order, gather=gated, bias=bias, half_time=pieces != "dealt",
            **how(pieces),
        )
        outputs.append(out)
    wanted, found, *others = outputs
    what = f"{kernels[1]} n {n} k {k} rows {counts}"
    error = ((found.double() - wanted.double()).norm() / wanted.double().norm()).item()
    checks.error(what, "biases", error, BIASED_TOLERANCE)
    for units, pieces, out in zip((few, 1), walks[2:], others):
        checks.same(f"{what} {pieces} on {units}", found, out)


def _check_dense(checks, bundle, short, dtype, gated, height, n, k, rows, multiprocessors):
    x, w, shape = _operands(dtype, gated, 2, n, k, rows + NOBODYS_ROWS)
    count = torch.tensor([rows], dtype=torch.int32, device=DEVICE)
    most = -(-(rows + NOBODYS_ROWS) // height)

    def run(kernel, out, pieces, **options):
        launch.project(bundle, kernel, x, w, out, None, count, most_tiles=most, dense=True, matrix=1, **options)

    _both(checks, bundle, short, dtype, gated, False, height, f"n {n} k {k}, {rows} dense rows", shape, run, multiprocessors, True)
