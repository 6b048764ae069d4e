"""Checks that the sum drops what is spent and nothing else (l2.py, experts/combine.py). Part of test_experts.py.

What a dropped line held is lost only if it was not in memory yet. So before the rows under test are written all of them hold something
else, and that is in memory: a line that is dropped by mistake shows the older value, or may.
"""

import random

import torch

import launch

DEVICE = "cuda"
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# (hidden size, intermediate size, top_k): a stretch of 256 columns and less, several and a part, few and many lines a row.
SHAPES = ((64, 64, 1), (256, 768, 8), (2880, 2880, 4), (2048, 64, 3), (192, 4096, 2), (640, 1088, 10))
# More than an L2 holds.
FLUSH_BYTES = 2**28
# Rows of slots that are nobody's, in front and behind.
GUARDS = 3
OLDER = -7.0


def written(shape, dtype, flush):
    """Random rows that have just been written where OLDER is in memory."""
    rows = torch.full(shape, OLDER, device=DEVICE, dtype=dtype)
    values = torch.randn(shape, device=DEVICE).to(dtype)
    flush.add_(1)
    rows.copy_(values)
    return rows, values


def check_spent(checks, bundle, multiprocessors):
    flush = torch.zeros(FLUSH_BYTES, dtype=torch.uint8, device=DEVICE)
    for short, dtype in TYPES.items():
        for hidden, intermediate, top_k in SHAPES:
            tokens = random.choice((1, 2, 17, 300))
            _check(checks, bundle, multiprocessors, flush, short, dtype, hidden, intermediate, top_k, tokens)


def _check(checks, bundle, multiprocessors, flush, short, dtype, hidden, intermediate, top_k, tokens):
    most = tokens + random.choice((0, 1, 5))
    slots = most * top_k
    # Where each slot's row is: guards in front and behind belong to none, and some slots have none.
    inverse = (torch.randperm(slots, device=DEVICE) + GUARDS).to(torch.int32)
    inverse = torch.where(torch.rand(slots, device=DEVICE) < 0.1, -1, inverse)
    weights = torch.rand(slots, device=DEVICE)
    count = torch.tensor([tokens], dtype=torch.int32, device=DEVICE)
    name = f"combine_{short}_{short}"
    what = f"{name} spent, hidden {hidden} intermediate {intermediate} top_k {top_k} tokens {tokens} of {most}"
    read = inverse[: tokens * top_k]
    others = torch.ones(slots + 2 * GUARDS, dtype=torch.bool, device=DEVICE)
    others[read[read >= 0].long()] = False
    outs = []
    for spent in ((), ("rows",), ("inner",), ("rows", "inner")):
        inner, inner_values = written((slots + 2 * GUARDS, intermediate), dtype, flush)
        rows, values = written((slots + 2 * GUARDS, hidden), dtype, flush)
        if not outs:
            first = values
        rows.copy_(first)
        out = torch.full((most, hidden), float("nan"), device=DEVICE, dtype=dtype)
        launch.combine(
            bundle, bundle[name], rows, inverse, out, count, most_tokens=most, top_k=top_k, weights=weights,
            multiprocessors=random.choice((1, multiprocessors)), spent=spent, inner=inner,
        )
        # What has not been written to memory by now would be lost.
        flush.add_(1)
        outs.append(out)
        checks.same(f"{what}: {spent}", outs[0], out)
        for label, found, wanted in (("rows", rows, first), ("inner", inner, inner_values)):
            kept = others if label in spent else torch.ones_like(others)
            checks.same(f"{what}: {spent}, {label} of others", found[kept], wanted[kept])
    wanted = torch.zeros(tokens, hidden, dtype=torch.float64, device=DEVICE)
    for choice in range(top_k):
        at = read.view(tokens, top_k)[:, choice].long()
        weight = weights.view(most, top_k)[:tokens, choice].double() * (at >= 0)
        wanted += weight[:, None] * first[at.clamp(min=0)].double()
    error = ((outs[0][:tokens].double() - wanted).norm() / wanted.norm().clamp(min=1e-30)).item()
    checks.error(what, "spent", error, {"bf16": 4e-3, "fp16": 8e-4, "fp32": 2e-5}[short])
