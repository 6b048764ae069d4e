"""Checks what is left to do of routing on a GPU: by the kernel of its own, and by those that do it along with their own work.

    python test_tidy.py [--bundle DIR] [--seed N]

Counts of up to 1024 experts, in tensors with words around them that must stay as they are; what is not asked for, too. That the
sums are right beside it is test_experts.py's to check; here they must be the same bits.
"""

import argparse
import random
import sys
from pathlib import Path

import torch

from launch import Bundle, combine, decode_second, decode_second_names, tidy
from test_experts import DEVICE, Checks

# Words in front of and behind what a kernel is told of.
MARGIN = 64
NAMES = ("counts", "out", "counts_host", "fault", "fault_host")
WRITTEN = ("out", "counts_host", "fault_host")


class Tidying:
    """Random words everywhere, and what they must become."""

    def __init__(self, experts, asked):
        sizes = {"counts": experts, "out": experts, "counts_host": experts, "fault": 1, "fault_host": 1}
        self.all, self.inner = {}, {}
        for name in NAMES:
            words = torch.randint(-(2**31), 2**31, (2 * MARGIN + sizes[name],)).to(torch.int32)
            self.all[name] = words.pin_memory() if name.endswith("_host") else words.to(DEVICE)
            self.inner[name] = self.all[name][MARGIN : MARGIN + sizes[name]]
        self.wanted = {name: words.cpu().clone() for name, words in self.all.items()}
        inside = lambda name: self.wanted[name][MARGIN : MARGIN + sizes[name]]  # noqa: E731
        for name in WRITTEN:
            if name in asked:
                inside(name).copy_(inside("fault" if name == "fault_host" else "counts"))
        if "clear" in asked:
            inside("counts").zero_()
        self.given = {name: words for name, words in self.inner.items() if name not in WRITTEN or name in asked}
        self.given["clear"] = "clear" in asked

    def holds(self):
        torch.cuda.synchronize()
        return all(torch.equal(words.cpu(), self.wanted[name]) for name, words in self.all.items())


def sums(bundle, tokens, experts, top_k, width, multiprocessors):
    """Launches that do it along with their own work, each with a function that has their output."""
    n = -(-width // 64) * 64
    count = torch.tensor([tokens], dtype=torch.int32, device=DEVICE)
    ids = torch.stack([torch.randperm(experts)[:top_k] for _ in range(tokens)]).to(torch.int32).to(DEVICE)
    weights = torch.rand(tokens, top_k, device=DEVICE)
    rows = torch.randn(tokens * top_k, n, device=DEVICE).to(torch.bfloat16)
    inverse = torch.randperm(tokens * top_k).to(torch.int32).to(DEVICE)
    common = {"most_tokens": tokens, "top_k": top_k, "weights": weights}

    def combined(tidying):
        out = torch.full((tokens, width), float("nan"), device=DEVICE)
        kernel = bundle[f"combine_bf16_fp32{'' if width % 16 == 0 else '_any'}"]
        combine(bundle, kernel, rows, inverse, out, count, multiprocessors=multiprocessors, tidying=tidying, **common)
        return out

    yield "combine", combined
    if tokens > 4:
        return
    matrices = torch.randn(experts, 2, n, 64, device=DEVICE).to(torch.bfloat16)
    inner = torch.randn(tokens * top_k, 128, device=DEVICE).to(torch.bfloat16)
    for name in decode_second_names(bundle, "bf16", "fp32", 128):
        def decoded(tidying, name=name):
            out = torch.full((tokens, width), float("nan"), device=DEVICE)
            decode_second(bundle, bundle[name], inner, matrices, ids, out, count, tidying=tidying, **common)
            return out

        yield name, decoded


def run_all(bundle, seed):
    torch.manual_seed(seed)
    random.seed(seed)
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    checks = Checks()
    for tokens in (1, 2, 3, 4, 5, 33, 600, 5000):
        experts, top_k = random.randrange(8, 1025), random.randrange(1, 9)
        width = random.choice([64, 100, 1024])
        for name, launch in sums(bundle, tokens, experts, top_k, width, random.choice([1, multiprocessors])):
            plain = launch(None)
            for asked in ((*WRITTEN, "clear"), (), ("counts_host", "fault_host"), ("out", "clear"), ("clear",)):
                told = Tidying(experts, asked)
                label = f"{name}, {tokens} tokens, {experts} experts, {', '.join(asked) or 'nothing'}"
                checks.same(f"{label}: sums", launch(told.given), plain)
                checks.that(label, told.holds())
        for asked in ((*WRITTEN, "clear"), ("out", "clear"), ("counts_host",)):
            told = Tidying(experts, asked)
            tidy(bundle, bundle["tidy"], told.given)
            checks.that(f"tidy, {experts} experts, {', '.join(asked)}", told.holds())
    return checks


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bundle", default=Path(__file__).resolve().parent / "bundle")
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    checks = run_all(Bundle(options.bundle), options.seed)
    print("\n".join(checks.failures))
    print(f"{checks.count} checks, {len(checks.failures)} failed")
    sys.exit(1 if checks.failures else 0)


if __name__ == "__main__":
    main()
