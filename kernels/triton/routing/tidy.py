"""What is left to do when routing is done, by programs of the kernel that ends the step, or in a launch of its own.

The host wants each expert's count and the fault word: they are written to page-locked memory, where they are found
without a copy being asked for. Counts that route.py added up by itself the next step wants empty.

As copies and fills of the driver's these were four nodes of a graph, one after the other, and the copy engines they go
through made a decode step 8 us longer on an H200. As a kernel beside the sum it still was the last one done. By programs of
the sum, or of decode's second product, before they wait for the kernel in front, most steps take 0.1 to 1.8 us less (H100),
and those of 16 and 64 tokens of a small layer 0.3 more: a kernel is not over before the host's memory has what it wrote
there. (A block of its own for it was no faster.)
"""

import triton
import triton.language as tl

# Bits of `options`, part of the ABI: what there is a place for, and whether counts are to be 0 afterwards.
OPTIONS = {"out": 1, "counts_host": 2, "fault_host": 4, "clear": 8}
OUT = tl.constexpr(OPTIONS["out"])
COUNTS_HOST = tl.constexpr(OPTIONS["counts_host"])
FAULT_HOST = tl.constexpr(OPTIONS["fault_host"])
CLEAR = tl.constexpr(OPTIONS["clear"])

# Words that a program of another kernel goes through at once: as many as a warp loads in one instruction.
BLOCK = tl.constexpr(128)
# Parameters of `tidy`, and with TIDY_ in front of every kernel that does it along with its own work.
ARGUMENTS = {
    "counts": "*i32",
    "out": "*i32",
    "counts_host": "*i32",
    "fault": "*i32",
    "fault_host": "*i32",
    "experts": "i32",
    "options": "i32",
}
# Part of the ABI.
PREFIX = "tidy_"
ARGUMENTS_OF_OTHERS = {f"{PREFIX}{name}": kind for name, kind in ARGUMENTS.items()}


@triton.jit
def tidy_up(
    program, programs, counts, out, counts_host, fault, fault_host, experts, options, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program i of so many: words BLOCK * i and on, then those after `programs` blocks, and so on; arguments as for `tidy`.

    Counts and fault must be done, and nothing read counts that are cleared any more; a kernel that starts early does this before
    it waits only if that holds from two kernels in front of it on (overlap.py).
    """
    for first in range(program * BLOCK, experts, programs * BLOCK):
        word = first + tl.arange(0, BLOCK)
        counted = word < experts
        # Past the L1, which may hold what an earlier step of the same launch counted.
        count = tl.load(counts + word, mask=counted, other=0, cache_modifier=".cg")
        tl.store(out + word, count, mask=counted & ((options & OUT) != 0))
        tl.store(counts_host + word, count, mask=counted & ((options & COUNTS_HOST) != 0))
        # The thread that read a count is the one that clears it.
        tl.store(counts + word, tl.zeros_like(word), mask=counted & ((options & CLEAR) != 0))
    if (program == 0) & ((options & FAULT_HOST) != 0):
        tl.store(fault_host, tl.load(fault, cache_modifier=".cg"))


@triton.jit
def tidy(
    counts,  # int32 [experts]; out: 0, if CLEAR
    out,  # int32 [experts], in device memory, if OUT
    counts_host,  # int32 [experts], in host memory, if COUNTS_HOST
    fault,  # int32 [1]
    fault_host,  # int32 [1], in host memory, if FAULT_HOST
    experts,
    options,
    BLOCK: tl.constexpr,
):
    """Where no other kernel does it."""
    tidy_up(
        tl.program_id(0), tl.num_programs(0), counts, out, counts_host, fault, fault_host, experts, options, BLOCK
    )  # fmt: skip
