"""Checks of the kernels of experts/decode_packed.py and decode_packed_second.py against float64, from the plain weights that were packed.

Part of test_experts.py. That they route as `route` does is checked in check_routed.py.
"""

import random

import torch

import launch
import launch_packed
from check_packed import odd_weights
from layout import paneled
from packed_layout import GROUP_ROWS

DEVICE = "cuda"
# Half of the last bit of what is put out, and what a sum in float32 may lose of the sum of its terms' sizes.
TOLERANCE = 4e-3
SUM_LOSS = 1e-5
# (experts, top_k, hidden size, intermediate size, valid columns of the hidden size). k of one panel, of fewer than there are warps, and of a
# number of panels that is no multiple of what warps ask for at once.
SHAPES = (
    (1, 1, 64, 64, 64),
    (2, 2, 192, 64, 130),
    (8, 2, 512, 448, 512),
    (40, 32, 128, 128, 128),
    (16, 4, 1472, 704, 1472),
    (4, 2, 2880, 2880, 2880),
    (128, 8, 2048, 768, 2040),
    (8, 2, 1024, 14336, 1024),
)
LONGEST_ODD = 2048
ACTIVATIONS = {
    "silu": lambda gate, value: torch.nn.functional.silu(gate) * value,
    "gelu-tanh": lambda gate, value: torch.nn.functional.gelu(gate, approximate="tanh") * value,
}


def check_decode_packed(checks, bundle, multiprocessors):
    for shape in SHAPES:
        experts, _, hidden, intermediate, valid = shape
        # Gate and value rows in turn.
        w1 = _weights(experts, 2 * intermediate, hidden, valid)
        w2 = _weights(experts, hidden, intermediate, intermediate)
        stored = [
            launch_packed.pack_weights(bundle, paneled(w), multiprocessors, columns) for w, columns in ((w1, valid), (w2, intermediate))
        ]
        failures = sum(packed.failures.item() for packed in stored)
        checks.that(f"decode_packed {shape}: {failures} failures of packing", failures == 0)
        for bias in (False, True):
            _check(checks, bundle, shape, w1, w2, stored, bias, random.randrange(1, 5))
        _check_nobody(checks, bundle, shape, stored)


def _check_nobody(checks, bundle, shape, stored):
    """Where no token is there nothing is written, whatever the ids."""
    experts, top_k, hidden, intermediate, _ = shape
    tokens = random.randrange(1, 5)
    ids = torch.randint(experts, (tokens, top_k), dtype=torch.int32, device=DEVICE)
    nobody = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    x = torch.randn(tokens, hidden, device=DEVICE).to(torch.bfloat16)
    for name, entry in bundle.entries.items():
        operator = entry["selects"]["operator"]
        if operator == "decode_packed_first" and not entry["selects"]["routes"]:
            out = _nan(tokens * top_k, intermediate)
            launch.decode_first(
                bundle, bundle[name], x, stored[0], out, ids, nobody, slots=tokens * top_k, top_k=top_k, activation="silu"
            )
        elif operator == "decode_packed_second":
            inner = torch.randn(tokens * top_k, intermediate, device=DEVICE).to(torch.bfloat16)
            out = _nan(tokens, hidden, dtype=getattr(torch, entry["selects"]["output"]))
            launch.decode_second(bundle, bundle[name], inner, stored[1], ids, out, nobody, most_tokens=tokens, top_k=top_k)
        else:
            continue
        checks.that(f"{name} {shape}: rows of nobody were written", bool(out.isnan().all()))


def _weights(experts, n, k, valid):
    """With what needs patches among them. Beside a weight that is so much larger, too many of longer rows would need some."""
    if k <= LONGEST_ODD:
        return odd_weights(experts, n, k, valid)
    return (torch.randn(experts, n, k, device=DEVICE) * k**-0.5).to(torch.bfloat16)


def _check(checks, bundle, shape, w1, w2, stored, bias, tokens):
    experts, top_k, hidden, intermediate, valid = shape
    live = random.randrange(1, tokens + 1)
    what = f"E{experts} k{top_k} H{hidden} I{intermediate} {live} of {tokens} tokens{' bias' if bias else ''}"
    slots = tokens * top_k
    ids = torch.rand(tokens, experts, device=DEVICE).topk(top_k, dim=1).indices.to(torch.int32)
    if top_k > 1:
        # A dropped slot has whatever weight.
        ids[0, random.randrange(top_k)] = -1
    weights = torch.rand(tokens, top_k, device=DEVICE)
    weights[ids < 0] = float("nan")
    x = torch.randn(tokens, hidden, device=DEVICE).to(torch.bfloat16)
    x[:, valid:] = 0
    b1 = torch.randn(experts, 2 * intermediate, device=DEVICE) if bias else None
    b2 = torch.randn(experts, hidden, device=DEVICE) if bias else None
    count = torch.tensor([live], dtype=torch.int32, device=DEVICE)
    activation = random.choice(tuple(ACTIVATIONS))

    def first(kernel="decode_packed_first_bf16", ids=ids):
        out = _nan(slots, intermediate)
        launch.decode_first(
            bundle, bundle[kernel], x, stored[0], out, ids, count, slots=slots, top_k=top_k, activation=activation,
            bias=b1, read_once=random.random() < 0.5,
        )
        return out

    inner = first()
    (rows, rows_loss), (sums, sums_loss) = _reference(x, w1, w2, ids, weights, b1, b2, ACTIVATIONS[activation], inner)
    there = (ids >= 0).flatten() & (torch.arange(slots, device=DEVICE) < live * top_k)
    worst = _worst(inner[there], rows[there], rows_loss[there])
    checks.error(f"decode_packed_first {what} {activation}", "decode_packed", worst, TOLERANCE)
    checks.that(f"decode_packed_first {what}: rows that are nobody's were written", bool(inner[~there].isnan().all()))
    checks.same(f"decode_packed_first {what} again", inner, first())
    # Whoever shares a token's experts, it gets the same.
    token = random.randrange(live)
    others = torch.rand(tokens, experts, device=DEVICE).topk(top_k, dim=1).indices.to(torch.int32)
    others[token] = ids[token]
    joint = first("decode_packed_first_joint_bf16")
    worst = _worst(joint[there], rows[there], rows_loss[there])
    checks.error(f"decode_packed_first {what} {activation}, jointly", "decode_packed", worst, TOLERANCE)
    checks.that(f"decode_packed_first {what}, jointly: rows that are nobody's were written", bool(joint[~there].isnan().all()))
    own = slice(token * top_k, (token + 1) * top_k)
    beside = first("decode_packed_first_joint_bf16", others)
    checks.same(f"decode_packed_first {what}, jointly: token {token} beside others", joint[own], beside[own])

    width = valid if valid % GROUP_ROWS else hidden
    extras = {name: torch.randn(tokens, hidden, device=DEVICE).to(torch.bfloat16) for name in ("shared", "residual")}
    extras["shared_scale"] = torch.rand(tokens, device=DEVICE)
    given = extras if random.random() < 0.7 else {}
    added = given and extras["shared"].double() * extras["shared_scale"].double()[:, None] + extras["residual"].double()
    wanted = (sums + added if given else sums)[:live, :width]
    # What is added cancels a part of the sum, and is added in float32.
    loss = (sums_loss + (SUM_LOSS * (sums.abs() + added.abs()) if given else 0))[:live, :width]
    for name, entry in bundle.entries.items():
        if entry["selects"]["operator"] != "decode_packed_second":
            continue
        dtype = getattr(torch, entry["selects"]["output"])

        def second(ids=ids):
            out = _nan(tokens, width, dtype=dtype)
            launch.decode_second(
                bundle, bundle[name], inner, stored[1], ids, out, count, most_tokens=tokens, top_k=top_k, weights=weights, bias=b2,
                read_once=random.random() < 0.5, **given,
            )
            return out

        out = second()
        checks.error(f"{name} {what}", "decode_packed", _worst(out[:live], wanted, loss), TOLERANCE)
        checks.that(f"{name} {what}: rows past the tokens were written", bool(out[live:].isnan().all()))
        checks.same(f"{name} {what} again", out, second())
        checks.same(f"{name} {what}: token {token} beside others", out[token], second(others)[token])


def _reference(x, w1, w2, ids, weights, b1, b2, activation, inner):
    """In float64: inner rows by slot, and the weighted sums of what the second product makes of `inner`; both with what sums in float32
    may lose."""
    tokens, top_k = ids.shape

    def nothing(rows, columns):
        return [torch.zeros(rows, columns, dtype=torch.float64, device=x.device) for _ in range(2)]

    rows, rows_loss = nothing(tokens * top_k, w2.shape[2])
    sums, sums_loss = nothing(tokens, w2.shape[1])
    for slot, expert in enumerate(ids.flatten().tolist()):
        if expert < 0:
            continue
        token = slot // top_k
        product, most = _product(w1[expert], x[token], None if b1 is None else b1[expert])
        gate, value = product[::2], product[1::2]
        rows[slot] = activation(gate, value)
        rows_loss[slot] = SUM_LOSS * 1.2 * (most[::2] * value.abs() + most[1::2] * gate.abs())
        row, most = _product(w2[expert], inner[slot], None if b2 is None else b2[expert])
        weight = weights.flatten()[slot].double()
        sums[token] += weight * row
        sums_loss[token] += weight * SUM_LOSS * most
    return (rows, rows_loss), (sums, sums_loss)


def _product(w, x, bias):
    """(w x, its size were all signs the same)"""
    w, x = w.double(), x.double()
    bias = torch.zeros(len(w), dtype=torch.float64, device=x.device) if bias is None else bias.double()
    return w @ x + bias, w.abs() @ x.abs() + bias.abs()


def _nan(*shape, dtype=torch.bfloat16):
    return torch.full(shape, float("nan"), device=DEVICE, dtype=dtype)


def _worst(found, wanted, loss):
    """The largest relative error of all elements, without what sums may lose: large ones hide none."""
    if found.numel() == 0:
        return 0.0
    error = ((found.double() - wanted).abs() - loss).clamp(min=0) / wanted.abs().clamp(min=1e-30)
    return error.max().item() if torch.isfinite(found).all() else float("inf")
