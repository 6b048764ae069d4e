"""Routes a batch of random logits once per size with PyTorch's own operators, for a profiler to look at.

    python chain.py EXPERTS:TOP_K:TOKENS...

Not a peer of a whole layer, and measures nothing itself. The leanest chain that gives what an expert loop or a
grouped product needs: offsets, inverse order and work lists, which Nexus's kernels make as well, are left out.
Memory that PyTorch clears without a kernel is not seen by the profiler. Prints versions as JSON.
"""

import json
import sys

import torch


def choose(logits, top_k):
    """(weights, ids) [tokens, top_k]: softmax over all experts, the top_k largest, divided by their sum."""
    weights, ids = torch.softmax(logits, dim=-1).topk(top_k, dim=-1)
    return weights / weights.sum(dim=-1, keepdim=True), ids


def arrange(ids, experts):
    """(counts, order): slots per expert, and the slots sorted by expert."""
    flat = ids.flatten().int()  # as keys to sort, 32 bits are half the bytes of topk's 64
    sorted_ids, order = torch.sort(flat, stable=True)
    return torch.histc(sorted_ids, bins=experts, min=0, max=experts - 1), order


def mark():
    """Ends a group of kernels by one of a known name, spin_kernel."""
    torch.cuda._sleep(1)


def main():
    sizes = [tuple(map(int, size.split(":"))) for size in sys.argv[1:]]
    torch.manual_seed(1)
    batches = [torch.randn(tokens, experts, device="cuda") for experts, _, tokens in sizes]
    # The second time with the profiler on: the first allocates, and loads the kernels.
    for profiled in (False, True):
        torch.cuda.synchronize()
        if profiled:
            torch.cuda.profiler.start()
        for logits, (experts, top_k, _) in zip(batches, sizes):
            _, ids = choose(logits, top_k)
            mark()
            arrange(ids, experts)
            mark()
        torch.cuda.synchronize()
        if profiled:
            torch.cuda.profiler.stop()
    print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda}))


if __name__ == "__main__":
    main()
