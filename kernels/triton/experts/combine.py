"""Expert rows back to tokens.

`combine` adds a token's rows, times their weights, in the order of its choices; then the shared
output; then the residual. One program holds one stretch of one token's columns, so the order of the
sum is the order of the loop: no atomics, and the same bits for every grid. `concat` puts the weighted rows
side by side instead. Both are bound by memory: all rows are read once.

Expert rows, shared output and residual are rows of one type and pitch; what comes out is without gaps, in the
caller's type.
"""

import triton
import triton.language as tl

from l2 import LINE, drop
from overlap import begin, wait
from routing.tidy import BLOCK as TIDY_BLOCK, tidy_up

# Bits of `options`, part of the ABI.
OPTIONS = {"weights": 1, "shared": 2, "shared_scale": 4, "residual": 8, "rows_spent": 16, "inner_spent": 32}
WEIGHTS = tl.constexpr(OPTIONS["weights"])
SHARED = tl.constexpr(OPTIONS["shared"])
SHARED_SCALE = tl.constexpr(OPTIONS["shared_scale"])
RESIDUAL = tl.constexpr(OPTIONS["residual"])
ROWS_SPENT = tl.constexpr(OPTIONS["rows_spent"])
INNER_SPENT = tl.constexpr(OPTIONS["inner_spent"])
# Lines that are dropped at a time, one a thread.
LINES = tl.constexpr(32)


@triton.jit
def add_shared_and_residual(total, token, columns, inside, shared, shared_scale, residual, row_pitch, options):
    """total + scale * shared[token] + residual[token], each if asked for."""
    there = token.to(tl.int64) * row_pitch + columns
    if (options & SHARED) != 0:
        scale = tl.load(shared_scale + token, mask=(options & SHARED_SCALE) != 0, other=1.0)
        total += scale * tl.load(shared + there, mask=inside, other=0.0).to(tl.float32)
    if (options & RESIDUAL) != 0:
        total += tl.load(residual + there, mask=inside, other=0.0).to(tl.float32)
    return total


@triton.jit
def drop_rows(rows, pitch, stretch, lines, inverse, token, top_k, after):
    """Of the rows of a token's choices drops one stretch of so many lines each (l2.py)."""
    elements: tl.constexpr = LINE * 8 // rows.dtype.element_ty.primitive_bitwidth
    for first in range(0, top_k * lines, LINES):
        number = first + tl.arange(0, LINES)
        choice = number // lines
        line = stretch * lines + number - choice * lines
        row = tl.load(inverse + token * top_k + choice, mask=choice < top_k, other=-1)
        address = rows + row.to(tl.int64) * pitch + line * elements
        drop(address.to(tl.int64, bitcast=True), ((row >= 0) & (line * elements < pitch)).to(tl.int32), after)


@triton.jit
def combine(
    rows,  # [slots, row_pitch], sorted by expert
    inner,  # [slots, inner_pitch], likewise: what rows were made of; if INNER_SPENT
    inverse,  # int32 [slots]: row of each slot, negative where the slot was dropped
    weights,  # float32 [slots], if WEIGHTS
    shared,  # [tokens, row_pitch], if SHARED
    shared_scale,  # float32 [tokens], if SHARED_SCALE
    residual,  # [tokens, row_pitch], if RESIDUAL
    out,  # [tokens, width]
    tokens,  # int32 [1]
    width,
    row_pitch,
    inner_pitch,
    top_k,
    options,
    tidy_counts,  # what is left to do of routing: routing/tidy.py; all 0: nothing
    tidy_out,
    tidy_counts_host,
    tidy_fault,
    tidy_fault_host,
    tidy_experts,
    tidy_options,
    BLOCK: tl.constexpr,
    UNROLL: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Persistent over (token, stretch of BLOCK columns)."""
    # From the last program on, which has least to do.
    programs = tl.num_programs(0)
    tidy_up(
        programs - 1 - tl.program_id(0), programs, tidy_counts, tidy_out, tidy_counts_host, tidy_fault, tidy_fault_host,
        tidy_experts, tidy_options, TIDY_BLOCK,
    )  # fmt: skip
    stretches = tl.cdiv(width, BLOCK)
    for work in range(tl.program_id(0), tl.load(tokens) * stretches, tl.num_programs(0)):
        token = work // stretches
        columns = (work % stretches) * BLOCK + tl.arange(0, BLOCK)
        inside = columns < width
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        for first in range(0, top_k, UNROLL):
            # Unrolled so that UNROLL rows are on their way at once; the sum stays in order.
            places = ()
            for ahead in tl.static_range(UNROLL):
                choice = first + ahead
                slot = token * top_k + choice
                row = tl.load(inverse + slot, mask=choice < top_k, other=-1)
                weight = tl.load(weights + slot, mask=(row >= 0) & ((options & WEIGHTS) != 0), other=1.0)
                places += ((row, weight),)
            # Where rows are and what they weigh has long been known; the rows come from the kernel in front.
            wait(DEPENDENT)
            for ahead in tl.static_range(UNROLL):
                row, weight = places[ahead]
                value = tl.load(rows + row.to(tl.int64) * row_pitch + columns, mask=inside & (row >= 0), other=0.0)
                total += weight * value.to(tl.float32)
        total = add_shared_and_residual(
            total, token, columns, inside, shared, shared_scale, residual, row_pitch, options
        )
        tl.store(out + token.to(tl.int64) * width + columns, total.to(out.dtype.element_ty), mask=inside)
        if (options & (ROWS_SPENT | INNER_SPENT)) != 0:
            added = tl.sum(total, axis=0)
            elements: tl.constexpr = LINE * 8 // rows.dtype.element_ty.primitive_bitwidth
            stretch = work % stretches
            # Of the rows only what this program has read. The others nobody reads any more.
            if (options & ROWS_SPENT) != 0:
                drop_rows(rows, row_pitch, stretch, BLOCK // elements, inverse, token, top_k, added)
            if (options & INNER_SPENT) != 0:
                inner_lines = tl.cdiv(inner_pitch // elements, stretches)
                drop_rows(inner, inner_pitch, stretch, inner_lines, inverse, token, top_k, added)
    # A program without work waits, too.
    wait(DEPENDENT)


@triton.jit
def concat(
    rows,  # [slots, row_pitch], sorted by expert
    inverse,  # int32 [slots]: row of each slot, negative where the slot was dropped
    weights,  # float32 [slots], if WEIGHTS
    out,  # [slots, width], in slot order: [tokens, top_k * width]
    tokens,  # int32 [1]
    width,
    row_pitch,
    top_k,
    options,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Persistent over (slot, stretch of BLOCK columns); a dropped slot gives zeros."""
    begin(DEPENDENT)
    stretches = tl.cdiv(width, BLOCK)
    for work in range(tl.program_id(0), tl.load(tokens) * top_k * stretches, tl.num_programs(0)):
        slot = work // stretches
        columns = (work % stretches) * BLOCK + tl.arange(0, BLOCK)
        inside = columns < width
        row = tl.load(inverse + slot)
        taken = row >= 0
        weight = tl.load(weights + slot, mask=taken & ((options & WEIGHTS) != 0), other=1.0)
        value = tl.load(rows + row.to(tl.int64) * row_pitch + columns, mask=inside & taken, other=0.0)
        result = weight * value.to(tl.float32)
        tl.store(out + slot.to(tl.int64) * width + columns, result.to(out.dtype.element_ty), mask=inside)
