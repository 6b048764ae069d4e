"""Times the expert kernels on a GPU: graph replays, random weights, inputs that change from step to step.

    python bench_experts.py [--bundle DIR] [--out FILE.json]

What is timed is one step after routing: buckets are made beforehand with PyTorch, so the routing kernels'
time is to be added. Where programs go in step their count is cleared by a launch of its own, which in a step the bucket kernel
does. "bytes" and "flops" are what the step cannot do without: every active expert's weights read once, and the
arithmetic of the rows that there are, padding not counted.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

import launch
from buckets import BEGUN, Buckets
from launch import Bundle
from layout import PANEL, sizes

DEVICE = "cuda"
REST_SECONDS = 0.2
SHAPES = {
    "qwen3-30b-a3b": {"experts": 128, "top_k": 8, "hidden": 2048, "intermediate": 768},
    "mixtral-8x7b": {"experts": 8, "top_k": 2, "hidden": 4096, "intermediate": 14336},
}
# (shape, tokens, exponent of the Zipf law or 0 for uniform, target in us with routing)
WORKLOADS = [
    ("qwen3-30b-a3b", 1, 0, 32),
    ("qwen3-30b-a3b", 64, 0, 295),
    ("qwen3-30b-a3b", 1024, 1, 375),
    ("qwen3-30b-a3b", 8192, 0, 1150),
    ("mixtral-8x7b", 1, 0, 185),
    ("mixtral-8x7b", 64, 1, 670),
    ("mixtral-8x7b", 4096, 0, 4600),
]


class Weights:
    """A layer's packed weights, random, and buffers for the most tokens."""

    def __init__(self, name, most_tokens):
        shape = SHAPES[name]
        self.__dict__.update(shape)
        self.w1 = self.panels(2 * self.intermediate, self.hidden)
        self.w2 = self.panels(self.hidden, self.intermediate)
        self.xs = [self.random(most_tokens, self.hidden, 1.0) for _ in range(2)]
        slots = most_tokens * self.top_k
        self.inner = torch.empty(slots, self.intermediate, device=DEVICE, dtype=torch.bfloat16)
        self.rows = torch.empty(slots, self.hidden, device=DEVICE, dtype=torch.bfloat16)
        self.out = torch.empty(most_tokens, self.hidden, device=DEVICE, dtype=torch.bfloat16)

    @staticmethod
    def random(*sizes_and_scale):
        *sizes, scale = sizes_and_scale
        tensor = torch.empty(*sizes, device=DEVICE, dtype=torch.bfloat16)
        return tensor.normal_(0, scale)

    def panels(self, n, k):
        return self.random(self.experts, k // PANEL, n, PANEL, k**-0.5)

    def floor(self, counts):
        """(bytes, floating-point operations) a step cannot do without."""
        per_expert = 3 * self.hidden * self.intermediate
        return 2 * per_expert * sum(c > 0 for c in counts), 2 * per_expert * sum(counts)


def choose(experts, top_k, tokens, exponent):
    """Expert ids and weights: k distinct experts a token, expert popularity 1 / rank^exponent."""
    popularity = 1.0 / torch.arange(1, experts + 1, device=DEVICE, dtype=torch.float32) ** exponent
    popularity = popularity[torch.randperm(experts, device=DEVICE)]
    ids = torch.multinomial(popularity.expand(tokens, experts), top_k)
    weights = torch.rand(tokens, top_k, device=DEVICE)
    return ids.to(torch.int32), weights / weights.sum(1, keepdim=True)


def time_steps(steps, replays=15):
    """Median us of a step: all `steps` captured into one graph, replayed."""
    # What the steps read was made on another stream.
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        for step in steps:
            step()
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            for step in steps:
                step()
        # The card reaches its power limit within milliseconds and lowers its clocks: every timing starts rested, so that
        # none pays for the one before.
        time.sleep(REST_SECONDS)
        for _ in range(3):
            graph.replay()
        times = []
        for _ in range(replays):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            stream.synchronize()
            times.append(begin.elapsed_time(end) * 1000 / len(steps))
    return statistics.median(times)


class Step:
    """One step of a layer over one routing, all experts in one tile class."""

    def __init__(self, bundle, weights, tokens, exponent, multiprocessors, height, x):
        self.bundle, self.weights, self.tokens, self.multiprocessors = bundle, weights, tokens, multiprocessors
        self.ids, self.gates = choose(weights.experts, weights.top_k, tokens, exponent)
        self.buckets = Buckets(self.ids, weights.experts, lambda count: height)
        self.tiles, self.tile_count = self.buckets.tiles[height], self.buckets.tile_counts[height]
        self.count = torch.tensor([tokens], dtype=torch.int32, device=DEVICE)
        self.height, self.x = height, x

    def walk(self, w):
        """As src/execution/cuda/operators/lane.ts has it, for more weights than the L2 holds."""
        size, l2 = w[0].numel() * w.element_size(), torch.cuda.get_device_properties(0).L2_cache_size
        large = size > l2 / 4
        share = self.tokens * self.weights.top_k / self.weights.experts
        tall = self.height > 64
        claim = tall and share <= 128 and size <= l2
        return {
            "claim": claim,
            "half_time": claim or (tall and not large and share <= 256),
            "in_step": not claim and self.height > 32 and (large or share <= 64),
        }

    def project(self, x, w, out, gated, **options):
        walk = self.walk(w)
        if walk["in_step"]:
            self.tile_count[BEGUN:].zero_()
        _, k = sizes(w)
        name = launch.project_name(self.bundle, "bf16", gated, self.height, k, gated, walk["in_step"])
        launch.project(
            self.bundle, self.bundle[name], x, w, out, self.tiles, self.tile_count, most_tiles=len(self.tiles),
            multiprocessors=self.multiprocessors, **walk, **options,
        )

    def first(self):
        w = self.weights
        self.project(self.x, w.w1, w.inner, True, activation="silu", order=self.buckets.order, gather=True, top_k=w.top_k)

    def second(self):
        w = self.weights
        self.project(w.inner, w.w2, w.rows, False)

    def combine(self):
        w = self.weights
        launch.combine(
            self.bundle, self.bundle["combine_bf16_bf16"], w.rows, self.buckets.inverse, w.out, self.count,
            most_tokens=self.tokens, top_k=w.top_k, multiprocessors=self.multiprocessors, weights=self.gates,
        )

    def run(self):
        self.first()
        self.second()
        self.combine()


def decode_step(bundle, weights, tokens, names, x):
    """A decode step on experts of its own."""
    ids, gates = choose(weights.experts, weights.top_k, tokens, 0)
    count = torch.tensor([tokens], dtype=torch.int32, device=DEVICE)

    def first():
        launch.decode_first(bundle, bundle[names[0]], x, weights.w1, weights.inner, ids, count,
                            slots=tokens * weights.top_k, top_k=weights.top_k, activation="silu", read_once=True)

    def second():
        launch.decode_second(bundle, bundle[names[1]], weights.inner, weights.w2, ids, weights.out, count,
                             most_tokens=tokens, top_k=weights.top_k, weights=gates, read_once=tokens == 1)

    return first, second


def cublas(weights, rows_per_expert):
    """us of the two products as batched matrix products of equal batches: the arithmetic rate to measure by."""
    x = Weights.random(weights.experts, rows_per_expert, weights.hidden, 1.0)
    inner = Weights.random(weights.experts, rows_per_expert, weights.intermediate, 1.0)
    rows = [w.transpose(1, 2).flatten(2) for w in (weights.w1, weights.w2)]
    first, second = (
        time_steps([lambda: torch.bmm(a, b.transpose(1, 2))] * 2) for a, b in zip((x, inner), rows)
    )
    return first, second


# One class for a whole step, by the even share of rows that an expert has: (largest share, rows of a tile). Classes side by
# side lost on an H200: each launch wants every multiprocessor, and what padding gains is lost in waiting.
CLASSES = [(2, 16), (16, 32), (48, 64), (float("inf"), 128)]
# Tokens up to which the decode kernels are used.
DECODE_TOKENS = 4


def run_workload(bundle, weights, tokens, exponent, multiprocessors):
    if tokens <= DECODE_TOKENS:
        first = launch.decode_first_name(bundle, "gated_logistic", "bf16")
        second = launch.decode_second_name(bundle, "bf16", "bf16", most_tokens=tokens, n=weights.hidden,
                                           k=weights.intermediate, multiprocessors=multiprocessors)
        names = (first, second)
        pairs = [decode_step(bundle, weights, tokens, names, weights.xs[i % 2]) for i in range(16)]
        counts = [1] * (tokens * weights.top_k)
        total = time_steps([lambda f=f, s=s: (f(), s()) for f, s in pairs])
        parts = {"first": time_steps([f for f, _ in pairs]), "second": time_steps([s for _, s in pairs])}
    else:
        share = tokens * weights.top_k / weights.experts
        height = next(h for most, h in CLASSES if share <= most)
        steps = [Step(bundle, weights, tokens, exponent, multiprocessors, height, x) for x in weights.xs]
        counts = steps[0].buckets.counts
        total = time_steps([s.run for s in steps])
        parts = {
            f"first rows{height}": time_steps([s.first for s in steps]),
            f"second rows{height}": time_steps([s.second for s in steps]),
            "combine": time_steps([s.combine for s in steps]),
        }
    least_bytes, flops = weights.floor(counts)
    return {"us": total, "parts": parts, "bytes": least_bytes, "flops": flops}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bundle", default=Path(__file__).resolve().parent / "bundle")
    parser.add_argument("--out")
    options = parser.parse_args()
    torch.manual_seed(1)
    bundle = Bundle(options.bundle)
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    results = []
    print("shape, tokens: us (target with routing) | TB/s of the least bytes, TFLOP/s of the useful arithmetic | parts")
    for name in SHAPES:
        mine = [w for w in WORKLOADS if w[0] == name]
        weights = Weights(name, max(w[1] for w in mine))
        for _, tokens, exponent, target in mine:
            result = run_workload(bundle, weights, tokens, exponent, multiprocessors)
            result.update(shape=name, tokens=tokens, zipf=exponent, target=target)
            results.append(result)
            parts = ", ".join(f"{k} {v:.1f}" for k, v in result["parts"].items())
            print(f"{name}, {tokens}{' Zipf' if exponent else ''}: {result['us']:.1f} ({target}) |"
                  f" {result['bytes'] / result['us'] / 1e6:.2f} TB/s, {result['flops'] / result['us'] / 1e6:.0f} TFLOP/s | {parts}")
        most = max(w[1] for w in mine)
        per_expert = most * weights.top_k // weights.experts
        first, second = cublas(weights, per_expert)
        results.append({"shape": name, "cublas_rows": per_expert, "first_us": first, "second_us": second})
        print(f"{name}, cuBLAS batched, {per_expert} rows an expert: first {first:.1f}, second {second:.1f}")
        del weights
        torch.cuda.empty_cache()
    if options.out:
        Path(options.out).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    sys.exit(main())
