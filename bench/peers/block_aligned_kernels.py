"""The product of vLLM's fused MoE schedule: blocks of sorted slots, each of one expert, times that expert's weights.

Not Nexus's product (kernels/triton/experts/grouped.py): one program a tile, plain pointer loads, a grid as large as any
routing might need whose surplus programs leave at once, and no activation in it.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["slots", "blocks"])
def grouped_product(
    x,  # [slots / TOP_K, k]
    w,  # [experts, n, k]
    out,  # out: [slots, n]
    weights,  # float32 [slots]; None unless WEIGHTED
    order,  # int32 [blocks * BLOCK_M], `slots` for no slot; None unless ALIGNED
    block_experts,  # int32 [blocks]
    block_count,  # int32 [1]; None unless ALIGNED
    n,
    k,
    slots,
    blocks,  # that there might be
    TOP_K: tl.constexpr,  # a slot's row of x is slot // TOP_K
    WEIGHTED: tl.constexpr,
    ALIGNED: tl.constexpr,  # otherwise block b holds slot b and no other
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,  # blocks that go through the columns together
):
    program = tl.program_id(0)
    columns = tl.cdiv(n, BLOCK_N)
    group = program // (GROUP_M * columns)
    within = program % (GROUP_M * columns)
    height = tl.minimum(blocks - group * GROUP_M, GROUP_M)
    block = group * GROUP_M + within % height
    column = (within // height) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_block = tl.arange(0, BLOCK_M)
    if ALIGNED:
        if block >= tl.load(block_count):
            return
        slot = tl.load(order + block * BLOCK_M + in_block)
    else:
        slot = tl.where(in_block == 0, block, slots)
    there = slot < slots
    slot = slot.to(tl.int64)
    expert = tl.load(block_experts + block).to(tl.int64)

    ks = tl.arange(0, BLOCK_K)
    x_tile = x + (slot // TOP_K)[:, None] * k + ks[None, :]
    # Past the last column: any rows will do, their products are never stored.
    w_tile = w + expert * n * k + (column % n).to(tl.int64)[None, :] * k + ks[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, k, BLOCK_K):
        if EVEN_K:
            a = tl.load(x_tile, mask=there[:, None], other=0.0)
            b = tl.load(w_tile)
        else:
            inside = ks < k - start
            a = tl.load(x_tile, mask=there[:, None] & inside[None, :], other=0.0)
            b = tl.load(w_tile, mask=inside[:, None], other=0.0)
        acc = tl.dot(a, b, acc)
        x_tile += BLOCK_K
        w_tile += BLOCK_K

    if WEIGHTED:
        acc *= tl.load(weights + slot, mask=there, other=0.0)[:, None]
    out_tile = out + slot[:, None] * n + column[None, :]
    tl.store(out_tile, acc.to(out.dtype.element_ty), mask=there[:, None] & (column < n)[None, :])
