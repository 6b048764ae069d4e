"""Dependent launches: a kernel that starts while the one before it in the stream runs, and waits for its end itself.

From sm_90 on routing, buckets, products and aggregation are such (DEPENDENT; `launch_pdl` in the manifest; not the gates):
what a launch takes passes while the last blocks of the kernel before are still at work. Each waits before it reads what
another kernel writes or writes what another one reads, and every block does, so the end of one is the end of all
before it. Launched like any other kernel they are as right.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def begin(DEPENDENT: tl.constexpr):
    """Lets the next kernel start as soon as all blocks of this one have, and waits for the kernel before."""
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
