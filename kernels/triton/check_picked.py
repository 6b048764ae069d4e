"""Checks of decode kernels that pick experts for themselves (decode.py): whom `route` picks, and what the others then give, bit for bit.

Part of test_experts.py.
"""

import random

import torch

import launch
from layout import padded, paneled

DEVICE = "cuda"
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
LOGITS = (torch.float32, torch.bfloat16, torch.float16)
# (experts, top_k, hidden size, intermediate size)
SHAPES = ((2, 1, 64, 64), (8, 2, 512, 96), (60, 4, 1024, 64), (128, 8, 2048, 128), (256, 8, 576, 64), (256, 32, 64, 64))


def logits_of(tokens, experts, dtype):
    """Random logits with equal ones among them, both zeros, -infinity, and at times a row that is not sound."""
    values = torch.randn(tokens, experts, device=DEVICE)
    if random.random() < 0.5:
        values = (2 * values).round() / 2
    values[torch.rand(tokens, experts, device=DEVICE) < 0.1] = -0.0
    if random.random() < 0.3:
        values[torch.rand(tokens, experts, device=DEVICE) < 0.5] = float("-inf")
    if random.random() < 0.3:
        values[random.randrange(tokens)] = random.choice((float("nan"), float("inf"), float("-inf")))
    return values.to(dtype)


def chosen(logits, top_k):
    """The largest, of equal ones the first: by a stable sort in float64, where 0 and -0 are equal. -1 in rows that are not sound."""
    order = torch.sort(logits.double() + 0.0, dim=1, descending=True, stable=True).indices[:, :top_k]
    sound = torch.isfinite(logits.double().amax(1))
    return torch.where(sound[:, None], order, -1).to(torch.int32)


def check_picked(checks, bundle, multiprocessors):
    for short, dtype in TYPES.items():
        for experts, top_k, hidden, intermediate in SHAPES:
            for logits_type in LOGITS:
                tokens = random.randrange(1, 5)
                _check(checks, bundle, short, dtype, experts, top_k, hidden, intermediate, logits_type, tokens)


def _check(checks, bundle, short, dtype, experts, top_k, hidden, intermediate, logits_type, tokens):
    x = torch.randn(tokens, padded(hidden), device=DEVICE).to(dtype)
    w = paneled((torch.randn(experts, 2 * padded(intermediate), padded(hidden), device=DEVICE) * hidden**-0.5).to(dtype))
    logits = logits_of(tokens, experts, logits_type)
    ids = chosen(logits, top_k)
    live = random.randrange(1, tokens + 1)
    count = torch.tensor([live], dtype=torch.int32, device=DEVICE)
    slots = tokens * top_k
    sound = (ids >= 0).flatten()

    def run(name, **more):
        out = torch.full((slots, padded(intermediate)), float("nan"), device=DEVICE, dtype=dtype)
        launch.decode_first(bundle, bundle[name], x, w, out, ids, count, slots=slots, top_k=top_k, activation="silu", **more)
        return out

    kind = "gated_logistic", short, padded(hidden)
    picked = launch.decode_picked_names(bundle, *kind, experts)
    checks.that(f"no kernel that picks one of {experts}", len(picked) > 0)
    [plain] = launch.decode_first_names(bundle, *kind)
    wanted = run(plain)
    for picks in picked:
        programs = slots * 2 * padded(intermediate) // bundle.entries[picks]["grid"]["y"]["by"]
        for picking in (0, programs, random.randrange(programs + 1)):
            found = run(picks, logits=logits, picking=picking)
            what = f"{picks} E{experts} k{top_k} H{hidden} {logits_type} {live} of {tokens} tokens, {picking} of {programs} pick"
            # Whatever is in the rows of tokens that no expert can be found for, nobody reads it.
            checks.same(what, found[sound], wanted[sound])
            checks.that(f"{what}: rows past the count were written", bool(found[live * top_k :].isnan().all()))
