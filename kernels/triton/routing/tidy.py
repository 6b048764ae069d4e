"""What is left to do when routing is done, in one launch beside the expert products.

The host wants each expert's count and the fault word: this kernel writes them to page-locked memory, where they
are found without a copy being asked for. The next step wants the sets (or the counts that route.py added up by
itself) empty: this kernel clears them. As copies and fills of the driver's these were four nodes of a graph, one
after the other, and the copy engines they go through made a decode step 8 us longer on an H200.
"""

import triton
import triton.language as tl

# Bits of `options`, part of the ABI: what there is a place for.
OPTIONS = {"out": 1, "counts_host": 2, "fault_host": 4}
OUT = tl.constexpr(OPTIONS["out"])
COUNTS_HOST = tl.constexpr(OPTIONS["counts_host"])
FAULT_HOST = tl.constexpr(OPTIONS["fault_host"])


@triton.jit
def tidy(
    counts,  # int32 [experts]
    out,  # int32 [experts], in device memory, if OUT
    counts_host,  # int32 [experts], in host memory, if COUNTS_HOST
    clear,  # int32 [clear_words]: may be `counts`
    fault,  # int32 [1]
    fault_host,  # int32 [1], in host memory, if FAULT_HOST
    experts,
    clear_words,
    options,
    BLOCK: tl.constexpr,
):
    """Program i: words BLOCK * i and on."""
    word = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    counted = word < experts
    count = tl.load(counts + word, mask=counted, other=0)
    tl.store(out + word, count, mask=counted & ((options & OUT) != 0))
    tl.store(counts_host + word, count, mask=counted & ((options & COUNTS_HOST) != 0))
    # The thread that read a count is the one that clears it.
    tl.store(clear + word, tl.zeros_like(word), mask=word < clear_words)
    if (tl.program_id(0) == 0) & ((options & FAULT_HOST) != 0):
        tl.store(fault_host, tl.load(fault))
