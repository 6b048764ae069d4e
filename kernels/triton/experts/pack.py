"""A matrix into the kernels' layout: rows at a pitch, or panels of columns; converted, padding set to zero.

Serves weights (one call per matrix and part, off the hot path) and activations whose width is no multiple of 64
or whose type is not that of the weights. The padded layout is what spares all other kernels their masks.

Where an element goes is two steps: from one row to the next, and from 64 columns to the next. Rows at a pitch have a row step
of the pitch and a panel step of 64, the panels of an expert's weights (grouped.py) a row step of 64 * parts and a panel step of
64 * n. A weight matrix's destination is its first element, plus `part` rows: parts is 2 and part 0 for a gate, 1 for its value; parts
is 1 otherwise. n = parts * round_up(outputs, 64). Padding rows are left alone: they hold the zeros that the memory was given
when it was allocated.
"""

import triton
import triton.language as tl

from .grouped import PANEL


@triton.jit
def place(row, column, row_step, panel_step):
    """Where an element lies from the first one on, in 64 bits."""
    return row.to(tl.int64) * row_step + (column // PANEL).to(tl.int64) * panel_step + column % PANEL


@triton.jit
def pack_rows(
    source,  # any strides, in elements
    destination,
    rows,
    columns,
    row_stride,
    column_stride,
    row_step,  # elements from one destination row to the next
    panel_step,  # and from PANEL columns to the next
    first_column,  # of the destination
    pitch,  # elements written of each destination row: columns, then zeros
    BLOCK: tl.constexpr,
):
    """Persistent over (row, stretch of BLOCK columns)."""
    stretches = tl.cdiv(pitch, BLOCK)
    for work in range(tl.program_id(0), rows * stretches, tl.num_programs(0)):
        row = (work // stretches).to(tl.int64)
        column = (work % stretches) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(
            source + row * row_stride + column.to(tl.int64) * column_stride, mask=column < columns, other=0.0
        )
        at = place(row, first_column + column, row_step, panel_step)
        tl.store(destination + at, value.to(destination.dtype.element_ty), mask=column < pitch)
