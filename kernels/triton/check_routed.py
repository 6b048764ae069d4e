"""Checks of decode kernels that route along (decode.py): what `route` and the others give one after the other, bit for bit.

Part of test_experts.py.
"""

import random

import torch

import launch
import launch_packed
from layout import padded, paneled
from test_routing import NO_FAULT, Routing

DEVICE = "cuda"
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
SCORINGS = ("softmax", "sigmoid", "topk-softmax", "topk-sigmoid")
MOST_TOKENS = 4
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


def check_routed(checks, bundle, multiprocessors):
    for short, packed in (("bf16", False), ("bf16", True), ("fp16", False)):
        for experts, top_k, hidden, intermediate in SHAPES:
            for logits_type in LOGITS:
                tokens = random.randrange(1, MOST_TOKENS + 1)
                units = multiprocessors if packed else None
                _check(checks, bundle, short, TYPES[short], experts, top_k, hidden, intermediate, logits_type, tokens, units)


def _check(checks, bundle, short, dtype, experts, top_k, hidden, intermediate, logits_type, tokens, packing):
    """packing: multiprocessors to pack weights by, if they are to be packed."""
    x = torch.randn(tokens, padded(hidden), device=DEVICE).to(dtype)
    n = 2 * padded(intermediate)
    w = paneled((torch.randn(experts, n, padded(hidden), device=DEVICE) * hidden**-0.5).to(dtype))
    packed = packing is not None
    w = launch_packed.pack_weights(bundle, w, packing) if packed else w
    bias = torch.randn(experts, n, device=DEVICE) if random.random() < 0.5 else None
    logits = logits_of(tokens, experts, logits_type)
    scoring = random.choice(SCORINGS)
    rule = {"renormalize": scoring in SCORINGS[:2] and random.random() < 0.5, "scale": random.choice((1.0, 2.5))}
    live = random.randrange(1, tokens + 1)
    count = torch.tensor([live], dtype=torch.int32, device=DEVICE)

    def outputs():
        return (
            torch.full((tokens * top_k, padded(intermediate)), float("nan"), device=DEVICE, dtype=dtype),
            torch.full((tokens, top_k), -7, device=DEVICE, dtype=torch.int32),
            torch.full((tokens, top_k), -7.0, device=DEVICE),
            torch.zeros(experts, device=DEVICE, dtype=torch.int32),
            torch.full((1,), NO_FAULT, device=DEVICE, dtype=torch.int32),
        )

    out, ids, weights, counts, fault = wanted = outputs()
    routing = Routing(bundle, experts, top_k, tokens, lists=[[(16, NO_FAULT, 1)]], dtype=logits_type)
    routing.ids, routing.weights, routing.counts, routing.fault, routing.tokens = ids, weights, counts, fault, count
    routing.route(logits, scoring, counts=True, **rule)
    # By whether tokens are taken together, which only kernels on packed weights can.
    firsts = {False: launch.decode_first_name(bundle, "gated_logistic", short)}
    if packed:
        firsts = {False: "decode_packed_first_bf16", True: "decode_packed_first_joint_bf16"}
    rows = {joint: out.clone() for joint in firsts}
    for joint, first in firsts.items():
        launch.decode_first(
            bundle, bundle[first], x, w, rows[joint], ids, count, slots=tokens * top_k, top_k=top_k, activation="silu", bias=bias
        )
    # Whatever is in the rows of tokens without experts, nobody reads it.
    sound = (ids >= 0).flatten()
    kernels = launch.decode_routing_names(bundle, str(dtype).removeprefix("torch."), experts, packed)
    checks.that(f"no kernel that routes {experts} experts along", len(kernels) > 0)
    for name in kernels:
        found = outputs()
        found[3].fill_(-7)
        told = torch.full((experts,), -7, dtype=torch.int32).pin_memory() if random.random() < 0.7 else None
        fault_told = torch.full((1,), -7, dtype=torch.int32).pin_memory()
        launch.decode_routing(
            bundle, bundle[name], x, w, found[0], logits, *found[1:], count, counts_host=told, fault_host=fault_told, scoring=scoring,
            bias=bias, read_once=random.random() < 0.5, **rule,
        )
        torch.cuda.synchronize()
        what = f"{name} E{experts} k{top_k} H{hidden} {logits_type} {scoring} {rule} {live} of {tokens} tokens"
        joint = bundle.entries[name]["selects"].get("joint", False)
        checks.same(f"{what}: rows", found[0][sound], rows[joint][sound])
        checks.that(f"{what}: rows past the count were written", bool(found[0][live * top_k :].isnan().all()))
        for each, got, want in zip(("ids", "weights", "counts", "fault"), found[1:], wanted[1:]):
            checks.same(f"{what}: {each}", got, want)
        checks.same(f"{what}: fault on the host", fault_told, fault.cpu())
        if told is not None:
            checks.same(f"{what}: counts on the host", told, counts.cpu())
