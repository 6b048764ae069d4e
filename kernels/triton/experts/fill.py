"""Uniform noise over the valid part of a projection's weights: synthetic layers of many gigabytes in seconds.

A weight's noise is a function of the seed and of where the weight lies, counted in 64 bits: Philox, ten rounds
(Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), whose output of 32 bits becomes a float32 in
[0, 1) and then, stretched over [-scale, scale), is rounded to the weights' type. No state goes from one program to the
next, so the same seed gives the same weights for every grid and on every GPU. Padding is not touched: it keeps the
zeros that all other kernels count on.

Counted is (m * n + r) * k + c for matrix m, row r and column c, wherever that lies: in panels (grouped.py) or in rows
(gate.py), by steps as in pack.py. The rows of a gated matrix are interleaved, so the valid ones come first here too:
r < valid_rows = parts * outputs.
"""

import triton
import triton.language as tl

from .pack import place


@triton.jit
def fill_uniform(
    destination,  # out: matrices of n * k
    seed,
    matrices,
    n,
    k,
    valid_rows,  # of each matrix
    valid_columns,  # of each row
    scale,
    row_step,
    panel_step,
    BLOCK: tl.constexpr,
):
    """Persistent over (matrix, valid row, stretch of BLOCK columns)."""
    stretches = tl.cdiv(valid_columns, BLOCK)
    for work in range(tl.program_id(0), matrices * valid_rows * stretches, tl.num_programs(0)):
        row = work // stretches
        column = (work % stretches) * BLOCK + tl.arange(0, BLOCK)
        matrix = (row // valid_rows).to(tl.int64)
        element = (matrix * n + row % valid_rows) * k + column
        noise = (2.0 * tl.rand(seed, element) - 1.0) * scale
        at = matrix * n * k + place(row % valid_rows, column, row_step, panel_step)
        tl.store(destination + at, noise.to(destination.dtype.element_ty), mask=column < valid_columns)
