"""ScatterMoE's product, "scatter2scatter": rows from anywhere times their experts' weights, put anywhere.

The slots are sorted by expert but not padded: a block starts anywhere and its rows past the expert's end are masked.
No grouping of blocks: all columns of a block come one after the other.
"""

import triton
import triton.language as tl


@triton.jit
def scatter2scatter(
    x,  # [slots, k] in sorted order if X_GROUPED, otherwise [slots / TOP_K, k]
    w,  # [experts, n, k]
    out,  # out: [slots, n], in sorted order if OUT_GROUPED
    order,  # int32 [slots]: slot of each place
    block_experts,  # int32 [blocks]
    block_rows,  # int32 [blocks, 2]: a block's first place, its expert's end
    block_count,  # int32 [1]
    n,
    k,
    TOP_K: tl.constexpr,
    X_GROUPED: tl.constexpr,
    OUT_GROUPED: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    columns = tl.cdiv(n, BLOCK_N)
    block = tl.program_id(0) // columns
    if block >= tl.load(block_count):
        return
    column = (tl.program_id(0) % columns) * BLOCK_N + tl.arange(0, BLOCK_N)
    place = tl.load(block_rows + 2 * block) + tl.arange(0, BLOCK_M)
    there = place < tl.load(block_rows + 2 * block + 1)
    expert = tl.load(block_experts + block).to(tl.int64)
    slot = tl.load(order + place, mask=there, other=0)
    x_row = place if X_GROUPED else slot // TOP_K
    out_row = place if OUT_GROUPED else slot

    ks = tl.arange(0, BLOCK_K)
    x_tile = x + x_row.to(tl.int64)[:, None] * k + ks[None, :]
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

    out_tile = out + out_row.to(tl.int64)[:, None] * n + column[None, :]
    tl.store(out_tile, acc.to(out.dtype.element_ty), mask=there[:, None] & (column < n)[None, :])
