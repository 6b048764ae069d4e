"""Checks the bundle's routing kernels on a GPU against the rules written out in PyTorch, in float64.

    python test_routing.py [--bundle DIR] [--seed N] [--cases N]

Inputs are fresh and random, outputs poisoned before every run, and buffers have room for more tokens than there are.
The seed is printed. Exit code 1 on any failure.
"""

import argparse
import math
import random
import sys
import time
from pathlib import Path

import torch

import launch
from buckets import COUNT_WORDS, list_counts
from launch import Bundle
from routing_reference import reference_bucket, reference_route, reference_tiles

DEVICE = "cuda"
SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
PADDED = (32, 64, 128, 256, 512, 1024)
WORD_TOKENS = 32
NO_FAULT = 2**31 - 1


def padded_experts(experts):
    return next(size for size in PADDED if size >= experts)


class Routing:
    """Buffers for `most_tokens` tokens, poisoned, and the two launches over them."""

    def __init__(self, bundle, experts, top_k, most_tokens, lists, lane_of=None, multiprocessors=132,
                 dtype=torch.float32):  # fmt: skip
        """lists: for every lane its classes, each (rows of a tile, most rows of an expert in it, most tiles of a group)."""
        self.bundle, self.experts, self.top_k, self.most_tokens = bundle, experts, top_k, most_tokens
        padded = self.padded_experts = padded_experts(experts)
        self.route_kernels = [bundle[f"route_{plain}{SHORT[dtype]}_experts{padded}"] for plain in ("plain_", "")]
        self.bucket_kernel = bundle[f"bucket_experts{padded}"]
        self.mark_kernel = bundle["mark"]
        slots = most_tokens * top_k
        self.lanes, self.classes = len(lists), len(lists[0])
        words = []
        self.first_tile = []
        at = 0
        for lane in lists:
            for rows, most, together in lane:
                self.first_tile.append(at)
                words.append([rows, min(most, NO_FAULT), at, together])
                # Every expert can end with a tile that is not full.
                at += slots // rows + min(experts, slots)
        self.heights = [w[0] for w in words]
        self.lists = torch.tensor(words, dtype=torch.int32, device=DEVICE)
        self.tokens = torch.zeros(1, dtype=torch.int32, device=DEVICE)
        self.lane_of = torch.zeros(experts, dtype=torch.int32, device=DEVICE) if lane_of is None else lane_of
        self.fault = torch.empty(1, dtype=torch.int32, device=DEVICE)
        self.ids = torch.empty(most_tokens, top_k, dtype=torch.int32, device=DEVICE)
        self.weights = torch.empty(most_tokens, top_k, device=DEVICE)
        self.sets = torch.empty(-(-most_tokens // WORD_TOKENS), padded, dtype=torch.int32, device=DEVICE)
        self.counts = torch.empty(experts, dtype=torch.int32, device=DEVICE)
        self.offsets = torch.empty(experts + 1, dtype=torch.int32, device=DEVICE)
        self.order = torch.empty(slots, dtype=torch.int32, device=DEVICE)
        self.inverse = torch.empty(slots, dtype=torch.int32, device=DEVICE)
        self.tiles = torch.empty(at, 4, dtype=torch.int32, device=DEVICE)
        self.tile_counts = torch.empty(self.lanes * self.classes, COUNT_WORDS, dtype=torch.int32, device=DEVICE)
        self.fill_programs = min(multiprocessors, -(-most_tokens // WORD_TOKENS))
        self.poison()

    POISON = -1234567

    def poison(self):
        self.sets.copy_(torch.randint(-(2**31), 2**31, self.sets.shape))
        for tensor in (self.ids, self.counts, self.offsets, self.order, self.inverse, self.tiles,
                       self.tile_counts):  # fmt: skip
            tensor.fill_(self.POISON)
        self.weights.fill_(float("nan"))
        self.fault.fill_(NO_FAULT)

    def route(self, logits, scoring, bias=None, renormalize=False, group_limit=None, scale=1.0, jitter=0.0,
              counts=False):  # fmt: skip
        """group_limit: (groups, keep, "top2-sum" or "max")."""
        manifest = self.bundle.manifest
        bits = manifest["options"]["route"]
        groups, keep, score = group_limit or (0, 0, "max")
        plain, full = self.route_kernels
        kernel = plain if bias is None and group_limit is None and scoring != "sparsemixer" else full
        by = kernel.grid["x"]["by"]
        kernel.launch((-(-self.most_tokens // by), 1, 1), {
            "logits": logits, "bias": bias, "tokens": self.tokens, "ids": self.ids, "weights": self.weights,
            "sets": self.sets, "counts": self.counts, "fault": self.fault, "experts": self.experts,
            "top_k": self.top_k, "most_tokens": self.most_tokens, "scoring": manifest["scorings"][scoring],
            "options": bits["bias"] * (bias is not None) | bits["renormalize"] * renormalize
            | bits["top2_sum"] * (score == "top2-sum") | bits["sets"] | bits["counts"] * counts,
            "groups": groups, "keep": keep, "scale": scale, "jitter": jitter,
        })  # fmt: skip

    def mark(self):
        grid = launch.covering(self.mark_kernel.grid, slots=self.most_tokens * self.top_k)
        self.mark_kernel.launch(grid, {
            "ids": self.ids, "tokens": self.tokens, "sets": self.sets, "experts": self.experts,
            "padded_experts": self.padded_experts, "top_k": self.top_k,
        })  # fmt: skip

    def bucket(self, capacity_factor=math.inf, told=(None, None)):
        """told: where on the host counts and fault go."""
        kernel = self.bucket_kernel
        grid = self.fill_programs + kernel.grid["shares_of_a_list"] * self.lanes * self.classes
        kernel.launch((grid, 1, 1), {
            "ids": self.ids, "sets": self.sets, "tokens": self.tokens, "lane_of": self.lane_of, "lists": self.lists,
            "counts": self.counts, "offsets": self.offsets, "order": self.order, "inverse": self.inverse,
            "tiles": self.tiles, "tile_counts": self.tile_counts, "capacity_factor": capacity_factor,
            "experts": self.experts, "top_k": self.top_k, "most_tokens": self.most_tokens, "lanes": self.lanes,
            "classes": self.classes, "fill_programs": self.fill_programs,
            **launch.tidying_values(self.bundle, "tidy_", counts_host=told[0], fault=self.fault, fault_host=told[1]),
        })  # fmt: skip


# Relative: float32 exponentials of differences of logits, and a few sums.
WEIGHT_TOLERANCE = 2e-5


class Checks:
    def __init__(self):
        self.failures = []
        self.count = 0
        self.rows = 0
        self.untrusted = 0
        self.worst = 0.0
        self.mixed_lists = 0

    def that(self, what, holds):
        self.count += 1
        if not holds:
            self.failures.append(what)

    def equal(self, what, found, wanted):
        wanted = torch.as_tensor(wanted, device=found.device)
        self.that(f"{what} differ", found.shape == wanted.shape and bool((found == wanted).all()))


def check_route(checks, label, routing, logits, tokens, rule, bad_rows, counts=False):
    routing.poison()
    routing.tokens.fill_(tokens)
    if counts:
        routing.counts.zero_()
    routing.route(logits, counts=counts, **rule)
    torch.cuda.synchronize()
    ids, weights = routing.ids[:tokens], routing.weights[:tokens]
    checks.that(f"{label}: ids past the tokens were written", bool((routing.ids[tokens:] == routing.POISON).all()))
    checks.that(f"{label}: weights past the tokens were written", bool(routing.weights[tokens:].isnan().all()))
    checks.that(f"{label}: fault is {routing.fault.item()}", routing.fault.item() == min(bad_rows, default=NO_FAULT))
    bad = torch.zeros(tokens, dtype=torch.bool, device=DEVICE)
    bad[list(bad_rows)] = True
    checks.that(f"{label}: rows without weights", bool((ids[bad] == -1).all() and (weights[bad] == 0).all()))
    wanted_ids, wanted_weights, trusted = reference_route(logits[:tokens], routing.top_k, **rule)
    trusted &= ~bad
    checks.rows += tokens
    checks.untrusted += int((~trusted & ~bad).sum())
    checks.equal(f"{label}: ids", ids[trusted].long(), wanted_ids[trusted])
    # Where rounding may decide: distinct experts at least.
    in_order = ids[~bad].sort(1).values
    checks.that(f"{label}: ids repeat", bool((in_order[:, 1:] > in_order[:, :-1]).all() and (in_order >= 0).all()))
    error = ((weights[trusted].double() - wanted_weights[trusted]).abs() / wanted_weights[trusted].abs().clamp(min=1e-30))
    worst = error.max().item() if error.numel() else 0.0
    checks.worst = max(checks.worst, worst)
    checks.that(f"{label}: weights, relative error {worst:.1e}", worst <= WEIGHT_TOLERANCE)
    if counts:
        chosen = ids[ids >= 0].long()
        checks.equal(f"{label}: counts by atomics", routing.counts.long(), torch.bincount(chosen, minlength=routing.experts))


def check_bucket(checks, label, routing, tokens, lists, capacity_factor):
    for tensor in (routing.counts, routing.offsets, routing.order, routing.inverse, routing.tiles, routing.tile_counts):
        tensor.fill_(routing.POISON)
    told = [torch.full((size,), routing.POISON, dtype=torch.int32).pin_memory() for size in (routing.experts, 1)]
    asked = random.random() < 0.5
    routing.bucket(capacity_factor, told if asked else (None, None))
    torch.cuda.synchronize()
    counts, offsets, order, inverse = reference_bucket(routing.ids[:tokens], routing.experts, capacity_factor)
    slots, rows = tokens * routing.top_k, len(order)
    checks.equal(f"{label}: counts", routing.counts.cpu().long(), counts)
    for what, word, on_device in zip(("counts", "fault"), told, (routing.counts, routing.fault)):
        wanted = on_device.cpu() if asked else torch.full_like(word, routing.POISON)
        checks.equal(f"{label}: {what} {'' if asked else 'not '}asked for on the host", word, wanted)
    checks.equal(f"{label}: offsets", routing.offsets.cpu().long(), offsets)
    checks.equal(f"{label}: order", routing.order[:rows].cpu().long(), order)
    checks.equal(f"{label}: inverse", routing.inverse[:slots].cpu().long(), inverse)
    untouched = (routing.order[rows:] == routing.POISON).all() and (routing.inverse[slots:] == routing.POISON).all()
    checks.that(f"{label}: written past the rows", bool(untouched))
    kept = (offsets[1:] - offsets[:-1]).tolist()
    wanted = reference_tiles(kept, offsets.tolist(), routing.lane_of.tolist(), lists)
    numbers = torch.stack([list_counts(len(tiles), busy, "cpu") for tiles, busy in wanted])
    checks.equal(f"{label}: tile counts", routing.tile_counts.cpu(), numbers)
    checks.mixed_lists += sum(busy > 0 for _, busy in wanted)
    tiles = routing.tiles.cpu()
    for first, room_ends, (mine, _) in zip(routing.first_tile, [*routing.first_tile[1:], len(tiles)], wanted):
        checks.equal(f"{label}: tiles", tiles[first : first + len(mine)], torch.tensor(mine, dtype=torch.int32).reshape(-1, 4))
        checks.that(f"{label}: tiles past the list's end", bool((tiles[first + len(mine) : room_ends] == routing.POISON).all()))


def check_mark(checks, label, routing, tokens):
    """The sets of the ids that are there: those that route left, or of ids written by the host."""
    routing.sets.zero_()
    routing.mark()
    ids = routing.ids[:tokens].long()
    known = (ids >= 0) & (ids < routing.experts)
    chosen = torch.zeros(len(routing.sets) * WORD_TOKENS, routing.padded_experts + 1, dtype=torch.bool, device=DEVICE)
    chosen[:tokens].scatter_(1, torch.where(known, ids, routing.padded_experts), True)
    bits = chosen[:, :-1].reshape(len(routing.sets), WORD_TOKENS, -1).long() << torch.arange(WORD_TOKENS, device=DEVICE)[:, None]
    checks.equal(f"{label}: sets", routing.sets.long() & 0xFFFFFFFF, bits.sum(1))


def draw_ids(routing, tokens):
    """Distinct experts for every token, some slots without any, and anything past the tokens."""
    scores = torch.rand(routing.most_tokens, routing.experts, device=DEVICE)
    ids = scores.topk(routing.top_k, dim=1).indices.to(torch.int32)
    none = torch.rand(ids.shape, device=DEVICE) < random.choice([0, 0.2, 1])
    routing.ids.copy_(torch.where(none, -1, ids))
    routing.ids[tokens:] = torch.randint(-(2**31), 2**31 - 1, ids[tokens:].shape, device=DEVICE).to(torch.int32)


def draw_logits(experts, rows, kind):
    if kind == "ties":
        logits = torch.randint(-2, 3, (rows, experts), device=DEVICE).float()
        # -0 is 0.
        return torch.where(torch.rand_like(logits) < 0.3, -logits.abs() * (logits == 0) + logits, logits)
    logits = torch.randn(rows, experts, device=DEVICE) * 2
    if kind == "skewed":
        logits += torch.linspace(4, -4, experts, device=DEVICE)
    if kind == "masked":
        few = torch.rand_like(logits) < 0.3
        few[:, : experts // 2 + 1] = False
        logits = logits.masked_fill(few, -math.inf)
    return logits


def draw_rule(experts, top_k):
    scoring = random.choice(["softmax", "softmax", "sigmoid", "sigmoid", "topk-softmax", "topk-sigmoid", "sparsemixer"])
    rule = {"scoring": scoring, "scale": random.choice([1.0, 2.5])}
    if scoring in ("softmax", "sigmoid"):
        rule["renormalize"] = random.random() < 0.5
        divisors = [g for g in range(2, min(experts // 2, 64) + 1) if experts % g == 0]
        if divisors and random.random() < 0.5:
            groups = random.choice(divisors)
            least = -(-top_k // (experts // groups))
            rule["group_limit"] = (groups, random.randint(least, groups), random.choice(["top2-sum", "max"]))
    if scoring == "sparsemixer":
        rule["jitter"] = random.choice([0.01, 0.1])
    if random.random() < 0.4:
        rule["bias"] = torch.randn(experts, device=DEVICE) * 0.3
    return rule


def plant(logits, tokens, rule):
    """Spoils some rows, and says which."""
    experts = logits.shape[1]
    rows = set(random.sample(range(tokens), min(tokens, random.choice([0, 0, 1, 3]))))
    for row in rows:
        kind = random.choice(["nan", "-nan", "inf", "all -inf"])
        if kind == "all -inf":
            logits[row] = -math.inf
        else:
            column = random.randrange(experts)
            value = {"nan": math.nan, "-nan": -math.nan, "inf": math.inf}[kind]
            logits[row, column] = value
    return rows


def run_case(checks, bundle, experts, top_k, tokens, rule, kind, spoil=True):
    room = tokens + random.choice([0, 1, 40, 100])
    lanes, classes = random.choice([1, 2, 4, 8]), random.choice([1, 1, 2, 3])
    lists = [
        [(random.choice([16, 64, 128]), most, random.choice([1, 3, 16])) for most in [8, 64, 2**31][3 - classes :]]
        for _ in range(lanes)
    ]  # fmt: skip
    lane_of = torch.randint(0, lanes, (experts,), dtype=torch.int32, device=DEVICE)
    dtype = random.choice([*SHORT])
    routing = Routing(bundle, experts, top_k, room, lists, lane_of, random.choice([132, 7, 1]), dtype)
    logits = draw_logits(experts, room, kind).to(dtype)
    logits[tokens:] = math.nan
    # A masked expert cannot be chosen with a weight by every rule; those rows are for their own case.
    bad = plant(logits, tokens, rule) if spoil else set()
    capacity = random.choice([math.inf, math.inf, 1.25, 1.0, 0.37])
    words = {k: ("yes" if torch.is_tensor(v) else v) for k, v in rule.items()}
    label = f"{SHORT[dtype]} E{experts} k{top_k} T{tokens}/{room} {kind} {words} lanes {lanes}x{classes} capacity {capacity}"
    check_route(checks, label, routing, logits, tokens, rule, bad, counts=random.random() < 0.5)
    check_bucket(checks, label, routing, tokens, lists, capacity)
    # Route's programs go through all the tokens that there is room for, and leave other bits alone.
    rows = routing.route_kernels[0].grid["x"]["by"]
    programs = torch.arange(-(-room // rows) * rows, device=DEVICE)
    theirs = torch.zeros(len(routing.sets), dtype=torch.int64, device=DEVICE)
    theirs.index_add_(0, programs // WORD_TOKENS, 1 << (programs % WORD_TOKENS))
    left = routing.sets.long() & theirs[:, None]
    check_mark(checks, label, routing, tokens)
    checks.equal(f"{label}: sets of route and mark", left, routing.sets.long() & theirs[:, None])
    draw_ids(routing, tokens)
    check_mark(checks, f"{label}, ids from the host", routing, tokens)
    check_bucket(checks, f"{label}, ids from the host", routing, tokens, lists, capacity)


EXPERTS = (2, 3, 8, 16, 31, 32, 33, 60, 64, 72, 128, 160, 256, 288, 384, 512, 896, 1024)


def run_all(bundle, seed, cases):
    torch.manual_seed(seed)
    random.seed(seed)
    checks = Checks()
    for experts in EXPERTS:
        for tokens in (1, random.choice([5, 33, 64]), random.choice([200, 512, 1000])):
            for kind in ("random", "skewed", "ties"):
                top_k = random.randint(1, min(experts, 32))
                run_case(checks, bundle, experts, top_k, tokens, draw_rule(experts, top_k), kind)
    for _ in range(cases):
        experts = random.choice(EXPERTS)
        top_k = min(experts, random.choice([1, 2, 4, 6, 8, 22, 32]))
        tokens = int(2 ** random.uniform(0, 11))
        rule = draw_rule(experts, top_k)
        run_case(checks, bundle, experts, top_k, tokens, rule, random.choice(["random", "skewed", "ties"]))
    for scoring in ("softmax", "sigmoid", "topk-softmax", "topk-sigmoid"):
        run_case(checks, bundle, 40, 8, 300, {"scoring": scoring}, "masked")
    softmax_rule = {"scoring": "softmax", "renormalize": True}
    groups_rule = {"scoring": "sigmoid", "renormalize": True, "group_limit": (8, 4, "top2-sum"), "scale": 2.5}
    run_case(checks, bundle, 128, 8, 20000, softmax_rule, "skewed")
    run_case(checks, bundle, 256, 8, 20000, {**groups_rule, "bias": torch.randn(256, device=DEVICE)}, "random")
    run_case(checks, bundle, 1024, 32, 3000, softmax_rule, "random")
    run_case(checks, bundle, 8, 2, 20000, softmax_rule, "ties")
    checks.that("no list had busy experts in front", checks.mixed_lists > 0)
    return checks


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bundle", default=Path(__file__).resolve().parent / "bundle")
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    parser.add_argument("--cases", type=int, default=150)
    options = parser.parse_args()
    print(f"seed {options.seed}")
    torch.zeros(1, device=DEVICE)
    started = time.time()
    checks = run_all(Bundle(options.bundle), options.seed, options.cases)
    print("\n".join(checks.failures[:40]))
    print(f"{checks.rows} rows routed, {checks.untrusted} of them left to rounding; worst relative error of a weight {checks.worst:.1e}")
    print(f"{checks.count} checks, {len(checks.failures)} failed, {time.time() - started:.1f} s")
    sys.exit(1 if checks.failures else 0)


if __name__ == "__main__":
    main()
