"""Checks the bundle's gate kernels on a GPU against PyTorch in float64, from the same rounded inputs.

    python test_gate.py [--bundle DIR] [--seed N] [--cases N]

Inputs are fresh and random, rows past the tokens and outputs are NaN before every run, and buffers have room for more
tokens than there are. The seed is printed. Exit code 1 on any failure.
"""

import argparse
import random
import sys
import time
from pathlib import Path

import torch

import launch
from launch import Bundle, in_range
from layout import padded

DEVICE = "cuda"
TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# Error of sums in float32, relative to outputs of variance 1 (one output alone may well cancel to nearly nothing).
# Weights rounded to bfloat16, float16 or TF32 on the way would give 1e-4 or more, and so would products.
# Relative to the result, which for a single column can be small beside the terms of its sum.
TOLERANCE = 3e-5


def kernel_for(bundle, element, weights, outputs):
    """The kernel that the manifest's `selects` give."""
    for entry in bundle.entries.values():
        selects = entry["selects"]
        if selects["operator"] == "gate" and (selects["element"], selects["weights"]) == (element, weights):
            if in_range(selects["outputs"], outputs):
                return bundle[entry["name"]]
    raise KeyError((element, weights, outputs))


class Checks:
    def __init__(self):
        self.failures = []
        self.count = 0
        self.worst = {}

    def that(self, what, holds):
        self.count += 1
        if not holds:
            self.failures.append(what)


def run_case(checks, bundle, element, weights, n, width, tokens, most_tokens, bias, sigmoid):
    kernel = kernel_for(bundle, element, weights, n * most_tokens)
    k = padded(width)
    x = torch.full((most_tokens, k), float("nan"), device=DEVICE, dtype=TYPES[element])
    x[:tokens] = 0
    x[:tokens, :width] = torch.randn(tokens, width, device=DEVICE).to(x.dtype)
    w = torch.zeros(padded(n), k, device=DEVICE, dtype=TYPES[weights])
    w[:n, :width] = (torch.randn(n, width, device=DEVICE) * width**-0.5).to(w.dtype)
    b = None
    if bias:
        b = torch.zeros(padded(n), device=DEVICE)
        b[:n] = torch.randn(n, device=DEVICE)
    count = torch.tensor([tokens], dtype=torch.int32, device=DEVICE)

    def run(rows, count):
        out = torch.full((most_tokens, n), float("nan"), device=DEVICE)
        launch.gate(bundle, kernel, rows, w, out, count, most_tokens=most_tokens, bias=b, sigmoid=sigmoid)
        return out

    out = run(x, count)
    wanted = x[:tokens].double() @ w[:n].double().t()
    if bias:
        wanted = wanted + b[:n].double()
    if sigmoid:
        wanted = wanted.sigmoid()
    label = f"{kernel.name} n{n} k{width} T{tokens}/{most_tokens}{' bias' if bias else ''}{' sigmoid' if sigmoid else ''}"
    found = out[:tokens]
    size = max(wanted.norm().item(), wanted.numel() ** 0.5)
    error = (found.double() - wanted).norm().item() / size if found.isfinite().all() else float("inf")
    checks.worst[kernel.name] = max(checks.worst.get(kernel.name, 0.0), error)
    checks.that(f"{label}: relative error {error:.1e}", error <= TOLERANCE)
    checks.that(f"{label}: rows past the tokens were written", bool(out[tokens:].isnan().all()))

    # A row's bits are its own: in another place, among other rows, and again.
    checks.that(f"{label}: bits differ from run to run", torch.equal(found, run(x, count)[:tokens]))
    places = torch.randperm(most_tokens, device=DEVICE)
    moved = torch.full_like(x, 1.0)
    moved[places[:tokens]] = x[:tokens]
    everywhere = run(moved, torch.tensor([most_tokens], dtype=torch.int32, device=DEVICE))
    checks.that(f"{label}: bits depend on the row's place", torch.equal(found, everywhere[places[:tokens]]))


PAIRS = (
    ("bfloat16", "bfloat16"),
    ("float16", "float16"),
    ("float32", "float32"),
    ("bfloat16", "float32"),
    ("float16", "float32"),
)  # fmt: skip


def run_all(bundle, seed, cases):
    torch.manual_seed(seed)
    random.seed(seed)
    checks = Checks()
    for element, weights in PAIRS:
        for n, width, tokens, most_tokens in (
            (128, 2048, 1, 1), (256, 7168, 3, 4), (1, 2048, 1, 1), (1, 64, 4, 4), (1024, 100, 2, 4),
            (128, 2048, 5, 64), (1, 2048, 33, 500), (60, 1408, 512, 512), (1024, 192, 17, 40), (8, 4096, 16, 16),
            (128, 2048, 700, 4096), (1, 2048, 600, 600), (257, 320, 513, 1000), (8, 4096, 8192, 8192), (1024, 64, 64, 900),
            (256, 1000, 900, 1024), (256, 512, 4000, 4096),
        ):  # fmt: skip
            run_case(checks, bundle, element, weights, n, width, tokens, most_tokens, random.random() < 0.5,
                     random.random() < 0.5)  # fmt: skip
        for _ in range(cases):
            most_tokens = int(2 ** random.uniform(0, 12))
            run_case(checks, bundle, element, weights, int(2 ** random.uniform(0, 10)), random.randrange(1, 5000),
                     random.randint(1, most_tokens), most_tokens, random.random() < 0.5, random.random() < 0.5)  # fmt: skip
    return checks


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bundle", default=Path(__file__).resolve().parent / "bundle")
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    parser.add_argument("--cases", type=int, default=20)
    options = parser.parse_args()
    print(f"seed {options.seed}")
    torch.zeros(1, device=DEVICE)
    started = time.time()
    checks = run_all(Bundle(options.bundle), options.seed, options.cases)
    for name, value in sorted(checks.worst.items()):
        print(f"worst relative error, {name}: {value:.1e}")
    print("\n".join(checks.failures[:40]))
    print(f"{checks.count} checks, {len(checks.failures)} failed, {time.time() - started:.1f} s")
    sys.exit(1 if checks.failures else 0)


if __name__ == "__main__":
    main()
