"""What both Triton schedules do to rows between and after their products: SiLU-and-multiply, sum of a token's rows.

Not products, and bound by memory alone: every element is read and written once.
"""

from typing import Any

import triton
import triton.language as tl

from launching import Launch
from peer import Shape

# A thread of 4 warps reads 16 bytes of each of two rows of each operand.
ACTIVATED_ROWS = 8
ACTIVATED_COLUMNS = 256
# A thread of 4 warps sums the 16 bytes that it reads of each row.
SUMMED_COLUMNS = 1024


@triton.jit(do_not_specialize=["rows"])
def silu_and_mul(
    gate_up,  # [rows, 2 * columns]
    out,  # out: [rows, columns]
    rows,
    columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    inside = (row < rows) & (column < columns)
    source = gate_up + row * 2 * columns + column
    gate = tl.load(source, mask=inside).to(tl.float32)
    up = tl.load(source + columns, mask=inside).to(tl.float32)
    activated = gate * tl.sigmoid(gate) * up
    tl.store(out + row * columns + column, activated.to(out.dtype.element_ty), mask=inside)


@triton.jit
def sum_slots(
    rows,  # [tokens, TOP_K, columns]
    weights,  # float32 [tokens, TOP_K]; None unless WEIGHTED
    out,  # out: [tokens, columns]
    columns,
    TOP_K: tl.constexpr,
    WEIGHTED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    total = tl.zeros((COLUMNS,), dtype=tl.float32)
    for choice in tl.static_range(TOP_K):
        slot = token * TOP_K + choice
        row = tl.load(rows + slot * columns + column, mask=inside, other=0.0).to(tl.float32)
        total += row * tl.load(weights + slot) if WEIGHTED else row
    tl.store(out + token * columns + column, total.to(out.dtype.element_ty), mask=inside)


def silu_launch(shape: Shape, tokens: int, gate_up: Any, out: Any) -> Launch:
    rows = tokens * shape.top_k
    return Launch(
        silu_and_mul,
        (triton.cdiv(rows, ACTIVATED_ROWS), triton.cdiv(shape.intermediate, ACTIVATED_COLUMNS)),
        (gate_up, out, rows, shape.intermediate),
        {"ROWS": ACTIVATED_ROWS, "COLUMNS": ACTIVATED_COLUMNS, "num_warps": 4},
    )


def sum_launch(shape: Shape, tokens: int, rows: Any, weights: Any, out: Any) -> Launch:
    """A weighted sum, or a plain one if `weights` is None."""
    return Launch(
        sum_slots,
        (tokens, triton.cdiv(shape.hidden, SUMMED_COLUMNS)),
        (rows, weights, out, shape.hidden),
        {"TOP_K": shape.top_k, "WEIGHTED": weights is not None, "COLUMNS": SUMMED_COLUMNS, "num_warps": 4},
    )
