"""Checks every peer, with each of its settings, against float64.

    python test_peers.py [--seed N] [--peers NAME,...]

Eagerly, and where a peer says that it can be captured and there is a GPU, as a graph. Between two steps the first
output is overwritten with NaN and the inputs with another batch, so a step that leaves something out or remembers
something fails. Without a GPU, peers without Triton kernels are checked on the CPU. Exit code 1 on any failure.
"""

import argparse
import os
import random
import sys
from concurrent.futures import ThreadPoolExecutor

import torch

import cublas
from contender import ERROR_BOUND, ROW_ERROR_BOUND, capture
from layer import reference, relative_errors
from peer import Batch, Layer, Peer, Shape
from registry import PEERS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Uneven sizes among them; hidden and intermediate are multiples of 64, as every peer may ask.
SHAPES = [
    Shape("few experts", experts=8, top_k=2, hidden=128, intermediate=192, renormalize=True),
    Shape("one choice", experts=5, top_k=1, hidden=64, intermediate=64, renormalize=False),
    Shape("many experts", experts=128, top_k=8, hidden=256, intermediate=64, renormalize=True),
    Shape("not renormalized", experts=60, top_k=4, hidden=64, intermediate=128, renormalize=False),
    Shape("more than a byte numbers", experts=300, top_k=6, hidden=64, intermediate=64, renormalize=True),
]
TOKENS = [1, 3, 64, 257]
ROUTINGS = ["random", "half idle", "one for all"]
# An expert behind by so much is never chosen; one ahead by so much always is, without drowning the other choices.
NEVER, LEAD = 1e4, 0.5


def make_layer(shape: Shape, generator: torch.Generator) -> Layer:
    def weights(rows: int, columns: int) -> torch.Tensor:
        noise = torch.randn(shape.experts, rows, columns, generator=generator, device=DEVICE)
        return (noise / columns**0.5).bfloat16()

    return Layer(shape, weights(2 * shape.intermediate, shape.hidden), weights(shape.hidden, shape.intermediate))


def draw(shape: Shape, tokens: int, routing: str, generator: torch.Generator) -> Batch:
    logits = torch.randn(tokens, shape.experts, generator=generator, device=DEVICE)
    if routing == "half idle":
        idle = (shape.experts - shape.top_k + 1) // 2
        logits[:, torch.randperm(shape.experts, generator=generator, device=DEVICE)[:idle]] -= NEVER
    if routing == "one for all":
        expert = int(torch.randint(shape.experts, (), generator=generator, device=DEVICE))
        logits[:, expert] = logits.amax(dim=1) + LEAD
    return Batch(torch.randn(tokens, shape.hidden, generator=generator, device=DEVICE).bfloat16(), logits)


def unavailable(peer: Peer) -> str | None:
    if DEVICE == "cpu" and hasattr(peer, "compile_jobs"):
        return "its Triton kernels need a GPU"
    return peer.available()


def compile_ahead(peers: list[Peer]) -> None:
    """Side by side what would otherwise be compiled one after the other, when first launched."""
    compiled = [peer for peer in peers if hasattr(peer, "compile_jobs")]
    jobs = [job for peer in compiled for shape in SHAPES for job in peer.compile_jobs(shape, TOKENS)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda job: job(), jobs))


def steps(peer: Peer, layer: Layer, batch: Batch, setting: dict):
    """(mode, step), each prepared anew and run once."""
    eager = peer.prepare(layer, batch, setting)
    eager()
    yield "eager", eager
    if peer.capturable and DEVICE == "cuda":
        torch.cuda.synchronize()
        graph, output = capture(eager)
        yield "graph", lambda: (graph.replay(), output)[1]


def worst_errors(step, batch: Batch, others: list[Batch], expected: list[torch.Tensor]) -> tuple[float, float]:
    """Of whole outputs, and of single tokens."""
    errors = []
    for other, wanted in zip(others, expected):
        batch.hidden.copy_(other.hidden)
        batch.logits.copy_(other.logits)
        output = step()
        errors.append(relative_errors(output, wanted))
        if not (torch.equal(batch.hidden, other.hidden) and torch.equal(batch.logits, other.logits)):
            raise RuntimeError("the step changed its inputs")
        output.fill_(float("nan"))
    return tuple(max(each) for each in zip(*errors))


def check(peers: list[Peer], shape: Shape, tokens: int, generator: torch.Generator) -> tuple[int, int]:
    layer = make_layer(shape, generator)
    before = layer.gate_up.clone(), layer.down.clone()
    batches = [draw(shape, tokens, routing, generator) for routing in ROUTINGS]
    expected = [reference(layer, batch) for batch in batches]
    passed = failed = 0
    for peer in peers:
        for setting in peer.settings(layer, tokens):
            mode = "prepare"
            try:
                batch = Batch(batches[0].hidden.clone(), batches[0].logits.clone())
                for mode, step in steps(peer, layer, batch, setting):
                    error, row_error = worst_errors(step, batch, batches[1:] + batches[:1], expected[1:] + expected[:1])
                    if not (error < ERROR_BOUND and row_error < ROW_ERROR_BOUND):
                        raise RuntimeError(f"off by {error:.3g}, a token by {row_error:.3g}")
                    passed += 1
            except Exception as error:
                failed += 1
                where = f"{peer.name} {setting} {mode}, {shape.name}, {tokens} tokens"
                print(f"FAILED {where}: {type(error).__name__}: {error}")
    if not (torch.equal(before[0], layer.gate_up) and torch.equal(before[1], layer.down)):
        failed += 1
        print(f"FAILED: a peer changed the weights, {shape.name}, {tokens} tokens")
    return passed, failed


def check_limit(shape: Shape, generator: torch.Generator) -> tuple[int, int]:
    """cuBLAS's limit multiplies as many rows as it says, and twice the same."""
    layer = make_layer(shape, generator)
    step = cublas.limit(layer, 7, shape.experts)
    first = step().clone()
    step().fill_(float("nan"))
    expected_shape = (shape.experts, -(-7 * shape.top_k // shape.experts), shape.hidden)
    right = first.shape == expected_shape and torch.equal(step(), first)
    if not right:
        print(f"FAILED cublas.limit, {shape.name}")
    return int(right), int(not right)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    parser.add_argument("--peers", help="names, separated by commas")
    options = parser.parse_args()
    print(f"device {DEVICE}, seed {options.seed}")
    generator = torch.Generator(DEVICE).manual_seed(options.seed)
    peers, skipped = [], 0
    for peer in PEERS:
        if options.peers and peer.name not in options.peers.split(","):
            continue
        if (reason := unavailable(peer)) is not None:
            skipped += 1
            print(f"skipped {peer.name}: {reason}")
        else:
            peers.append(peer)
    if DEVICE == "cuda":
        compile_ahead(peers)
    counts = [check(peers, shape, tokens, generator) for shape in SHAPES for tokens in TOKENS]
    counts += [check_limit(shape, generator) for shape in SHAPES]
    passed, failed = (sum(column) for column in zip(*counts))
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
