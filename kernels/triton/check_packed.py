"""Checks of the kernels of experts/packed.py and pack_weights.py: bit for bit what plain weights give, and the weights themselves.

Part of test_experts.py. Whole outputs are compared, so that rows that are nobody's are seen to stay as they were. What they are compared
with are the kernels of many.py and grouped.py, which are held against float64 there.
"""

import itertools
import random

import torch

import launch
import launch_packed
from buckets import BEGUN, SPARE_TILES, Buckets, list_counts, with_room
from check_many import PIECES, how
from layout import paneled

DEVICE = "cuda"
# Rows of tiles on a list; those of 16 go through the kernel of 32.
HEIGHTS = (128, 64, 32, 16)
# (n, k, valid columns, rows of each expert). 64 is a part of a piece, 192 and 448 no whole number of them; k of one step, of less than there
# are stages, of as many (five to seven), and of more than a word has flags.
SHAPES = (
    (64, 64, 64, [1]),
    (128, 192, 130, [0, 0, 5, 0]),
    (256, 256, 256, [127, 128, 129, 1]),
    (512, 320, 512, [40, 0, 20, 130]),
    (320, 384, 300, [0, 33, 64]),
    (256, 448, 256, [1, 2, 31, 70]),
    (192, 512, 512, [300, 0, 17, 0, 650]),
    (448, 2176, 2120, [0, 2000, 0]),
    (1024, 1088, 1088, [64, 65, 400, 3, 0, 511, 513]),
    (1536, 2048, 2048, [200] * 24),
    (256, 512, 512, [i % 7 for i in range(64)]),
)
NOBODYS_ROWS = 70
# None, what sums begin with, and what they end with.
BIASES = (None, "first", "last")


def check_packed(checks, bundle, multiprocessors):
    for n, k, valid, counts in SHAPES:
        w = odd_weights(len(counts), n, k, valid)
        packed = launch_packed.pack_weights(bundle, paneled(w), multiprocessors, valid)
        found = packed.unpacked()[:, :, :valid]
        wanted = w.cpu()[:, :, :valid]
        same = (found.view(torch.int16) == wanted.view(torch.int16)) | ((found == 0) & (wanted == 0))
        checks.that(f"pack_weights n {n} k {k}: {int((~same).sum())} weights differ", bool(same.all()))
        checks.that(f"pack_weights n {n} k {k}: {packed.failures.item()} failures", packed.failures.item() == 0)
        for gated, height, bias in itertools.product((True, False), HEIGHTS, BIASES):
            _check_lists(checks, bundle, gated, height, bias, w, packed, valid, counts, multiprocessors)
    _check_failures(checks, bundle, multiprocessors)


def odd_weights(matrices, n, k, valid):
    """Normally distributed ones; in the second matrix, or the only one, rows with what needs patches."""
    w = torch.randn(matrices, n, k, device=DEVICE) * k**-0.5
    odd = w[min(1, matrices - 1)]
    odd[3] = 0
    odd[5, :4] = 0
    odd[6, 0], odd[9, 7] = 1e-30, 1000.0
    odd[20] *= 1e-30
    odd[21] *= 1e15
    # Below the top of the lowest window.
    odd[40] *= 1e-35
    # As many patches as a group has room for, and none beside them.
    odd[48:64, :64] = odd[48:64, :64].sign() * k**-0.5
    odd[56, :8] = 0
    odd[33] *= torch.exp(torch.randn(k, device=DEVICE))
    w[:, :, valid:] = 0
    return w.to(torch.bfloat16)


def _check_lists(checks, bundle, gated, height, bias, w, packed, valid, counts, multiprocessors):
    slots, top_k = sum(counts), 2 if gated else 1
    n, k = packed.n, packed.k
    ids = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))[torch.randperm(slots)]
    buckets = Buckets(ids.to(DEVICE), len(counts), lambda count: height)
    x = torch.randn(-(-slots // top_k) if gated else slots, k, device=DEVICE).to(torch.bfloat16)
    x[:, valid:] = 0
    tiles = buckets.tiles[height]
    activation = random.choice(("silu", "gelu-tanh", "swiglu-clamped")) if gated else "none"
    biases = None if bias is None else torch.randn(len(counts), n, device=DEVICE)
    shape = (slots + NOBODYS_ROWS, n // 2 if gated else n)
    common = {
        "most_tiles": len(tiles) + SPARE_TILES, "activation": activation, "order": buckets.order, "gather": gated, "top_k": top_k,
        "bias": biases,
    }

    def poisoned():
        return torch.full(shape, float("nan"), device=DEVICE, dtype=torch.bfloat16)

    wanted = poisoned()
    # Of kernels with biases many.py's begin their sums with them.
    kind = "gated_logistic" if gated else "plain_identity"
    plain = f"project_{kind}_{'bias_' if bias else ''}bf16_many{max(height, 32)}"
    if bias == "last":
        plain = launch.tall_enough(bundle, f"project_{kind}_extras_bf16", height)
    elif k < bundle.entries[plain]["selects"]["k"]["least"]:
        if bias == "first":
            return
        plain = launch.tall_enough(bundle, f"project_{kind}_bf16", height)
    count = list_counts(len(tiles), 0, DEVICE)
    launch.project(
        bundle, bundle[plain], x, paneled(w), wanted, with_room(tiles), count, multiprocessors=multiprocessors, **common
    )
    kernel = bundle[launch_packed.packed_name(gated, height, bias is not None)]
    runs = [(multiprocessors, pieces) for pieces in PIECES]
    runs += [(units, random.choice(PIECES)) for units in (1, random.randrange(2, multiprocessors))]
    for units, pieces in runs:
        found = poisoned()
        count = list_counts(len(tiles), random.randrange(len(tiles) + 1), DEVICE)
        told = {"read_once": random.random() < 0.5, "keep": random.random() < 0.5, "bias_last": bias == "last"}
        launch_packed.project_packed(
            bundle, kernel, x, packed, found, with_room(tiles), count, multiprocessors=units, **common, **how(pieces), **told
        )
        what = f"{kernel.name} n {n} k {k} rows {counts[:8]} tiles of {height} {pieces} on {units}, bias {bias}"
        checks.same(what, wanted, found)
        blocks = units * kernel.grid["blocks_per_multiprocessor"]
        later = max(len(tiles) * -(-n // kernel.grid["columns_per_block"]) - blocks, 0) if pieces == "in step" else 0
        begun = count[BEGUN:].tolist()
        checks.that(f"{what}: begun {begun}", begun == ([later, 0] if gated else [0, later]))
    nothing = poisoned()
    empty = list_counts(0, 0, DEVICE)
    launch_packed.project_packed(
        bundle, kernel, x, packed, nothing, with_room(tiles), empty, multiprocessors=multiprocessors, **common
    )
    checks.same(f"{kernel.name} of an empty list", poisoned(), nothing)


def _check_failures(checks, bundle, multiprocessors):
    """What does not fit is counted: a group with nine patches in a panel, rows that are not finite, a weight that would lose a bit."""
    w = torch.randn(2, 64, 128, device=DEVICE).to(torch.bfloat16)
    w[0, 16, :9] = 0
    w[1, 3, 100], w[1, 4, 1] = float("nan"), float("inf")
    w[1, 62, 0], w[1, 62, 1] = 1.01e-39, 100.0
    found = launch_packed.pack_weights(bundle, paneled(w), multiprocessors).failures.item()
    checks.that(f"pack_weights: {found} failures of 4", found == 4)
