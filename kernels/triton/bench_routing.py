"""Times the routing kernels on a GPU by graph replay: route alone, and route with buckets and work lists.

    python bench_routing.py [--bundle DIR]

Logits are random and every step of the graph has its own, and its own outputs. A replay routes
the same logits again and so leaves the same sets: clearing them, which a layer does beside its experts, is not timed.
"""

import argparse
import statistics
from pathlib import Path

import torch

from buckets import MOST_TILES_TOGETHER
from launch import Bundle
from test_routing import DEVICE, Routing

STEPS = 20
REPLAYS = 30
SHAPES = [
    ("128 / 8, softmax", 128, 8, {"scoring": "softmax", "renormalize": True}),
    ("8 / 2, softmax", 8, 2, {"scoring": "softmax", "renormalize": True}),
    ("256 / 8, sigmoid, bias, 8 groups", 256, 8,
     {"scoring": "sigmoid", "renormalize": True, "group_limit": (8, 4, "top2-sum"), "scale": 2.5, "bias": True}),
]  # fmt: skip
TOKENS = (1, 64, 512, 4096, 8192)
TARGET = {("128 / 8, softmax", 512): 6}


def replay_us(steps):
    """Median us of one of the steps, captured into one graph."""
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
        for _ in range(5):
            graph.replay()
        times = []
        for _ in range(REPLAYS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            stream.synchronize()
            times.append(begin.elapsed_time(end) * 1000 / len(steps))
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bundle", default=Path(__file__).resolve().parent / "bundle")
    options = parser.parse_args()
    torch.manual_seed(1)
    torch.zeros(1, device=DEVICE)
    bundle = Bundle(options.bundle)
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    print("experts / top_k, rule: tokens: us of route, bucket with work lists, both")
    for label, experts, top_k, rule in SHAPES:
        for tokens in TOKENS:
            sets = []
            for _ in range(STEPS):
                routing = Routing(bundle, experts, top_k, tokens, [[(64, 2**31, MOST_TILES_TOGETHER)]],
                                  multiprocessors=multiprocessors)  # fmt: skip
                routing.tokens.fill_(tokens)
                routing.logits = torch.randn(tokens, experts, device=DEVICE)
                routing.rule = {**rule, "bias": torch.randn(experts, device=DEVICE) if rule.get("bias") else None}
                sets.append(routing)
            route = replay_us([lambda r=r: r.route(r.logits, **r.rule) for r in sets])
            bucket = replay_us([r.bucket for r in sets])
            both = replay_us([lambda r=r: (r.route(r.logits, **r.rule), r.bucket()) for r in sets])
            target = TARGET.get((label, tokens))
            print(f"{label}: {tokens}: {route:.2f}, {bucket:.2f}, {both:.2f}{f' (at most {target})' if target else ''}")


if __name__ == "__main__":
    main()
