"""Dependent launches: a kernel that starts while the one before it in the stream ends, and waits for its end itself.

From sm_90 on routing, buckets, products and aggregation are such (DEPENDENT; `launch_pdl` in the manifest; not the gates):
what a launch takes, and what a kernel can do without the other's results, passes while the last blocks of the kernel before
are still at work. Launched like any other kernel they are as right.

Two rules make that safe. Every block waits before it reads what the kernel in front writes, or writes what that one
reads: so the end of one kernel is the end of all before it. And no block lets the next kernel start before it has waited
itself: so whatever starts early finds the results of all kernels but the one in front, and may read those before it waits.
Which kernel that is the host knows (operators/): who reads lists before it waits starts early behind products
only, and the number of tokens, lanes and what is told of lists are written by no kernel. No L1 holds
older values of what is read so: a launch begins with a kernel that is not early, which empties them, and nothing reads a list
before its writer has ended. The build refuses kernels that can end, or let the next one start, without having waited (ptx_checks.py).

When to let the next one start: grouped products that are not one pipeline (FLATTEN) and decode's first with their last piece's
product done, decode's second and the sum at their end, all others once they have waited: few blocks, or blocks that leave room
for few others. Where several share a multiprocessor, sooner is too soon: the next kernel's blocks crowd where some are done
first. At 16 tokens of a small layer a step of 20.9 us took 26.2 with all kernels early behind beginnings, and takes
17.8 so (H100).
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def wait(DEPENDENT: tl.constexpr):
    """Waits for the end of the kernel before."""
    if DEPENDENT:
        gdc_wait()


@triton.jit
def release(DEPENDENT: tl.constexpr):
    """Lets the next kernel start as soon as all blocks of this one have come here, or have ended."""
    if DEPENDENT:
        gdc_launch_dependents()


@triton.jit
def begin(DEPENDENT: tl.constexpr):
    """Waits for the kernel before, and lets the next one start."""
    wait(DEPENDENT)
    release(DEPENDENT)
