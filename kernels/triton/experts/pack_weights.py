"""Plain panels of weights into words of 12 bits, scales, flags and patches (packed_words.py); off the hot path.

A program packs groups of 16 rows. It looks for their rows' windows first: from the row's largest exponent downwards, the one that
leaves the fewest weights outside. So a weight that is larger than all others gets a patch itself, instead of making many others
need one.

Counted as failures are 16 rows x 64 columns with more than 8 patches, rows that are not finite, and weights so small that they
cannot be scaled without loss; their words are of no use. The host says so to whoever wrote the matrix.

A weight is looked at where its word is written: the 8 of a lane's word one after the other. (Put in that order by reshapes and
permutations, and summed up into words, Triton 3.6 gave words without half of their weights; interpreted it gave the right ones.)
"""

import triton
import triton.language as tl

from .grouped import PANEL
from .packed_words import (
    BLOCK_ROWS,
    BLOCK_WORDS,
    FLAG_BITS,
    GROUP_ROWS,
    PATCH_BITS,
    PATCHES,
    PLANE_COLUMNS,
    PLANE_ROWS,
    TOP,
    UPPER,
    UPPER_SHIFT,
    WINDOW,
)

# How far below a row's largest exponent the top of its window is looked for: weights 2^7 times as large as nearly all others are rare.
LOWER_TOPS = tl.constexpr(8)
# The lowest window: from 2^-118 down to 2^-133, the least number that there is. So scales are large enough for biases below 2^10,
# which sums may begin with divided by their row's scale.
LEAST_TOP = tl.constexpr(9)
EXPONENT_SHIFT = tl.constexpr(7)
EXPONENT = tl.constexpr(255)
NOT_FINITE = tl.constexpr(255)


@triton.jit
def _panel(source, panel, n, k, valid_columns):
    """Bits of a group's weights in a panel, [16, 64]; 0 beyond the valid columns."""
    row = tl.arange(0, GROUP_ROWS)[:, None]
    column = tl.arange(0, PANEL)[None, :]
    value = tl.load(source + panel.to(tl.int64) * n * PANEL + row * PANEL + column)
    bits = value.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return tl.where(panel * PANEL + column < valid_columns, bits, 0)


@triton.jit
def _windows(source, n, k, valid_columns):
    """(top of each row's window, or 0 where a row is all zeros; whether all of a row is finite)"""
    largest = tl.zeros([GROUP_ROWS], tl.int32)
    for panel in range(0, k // PANEL):
        bits = _panel(source, panel, n, k, valid_columns)
        # Of zeros none.
        exponent = tl.where((bits & 0x7FFF) == 0, 0, tl.maximum((bits >> EXPONENT_SHIFT) & EXPONENT, LEAST_TOP))
        largest = tl.maximum(largest, tl.max(exponent, axis=1))
    lower = tl.arange(0, LOWER_TOPS)[None, :]
    outside = tl.zeros([GROUP_ROWS, LOWER_TOPS], tl.int32)
    for panel in range(0, k // PANEL):
        bits = _panel(source, panel, n, k, valid_columns)
        valid = (panel * PANEL + tl.arange(0, PANEL) < valid_columns)[None, :]
        below = largest[:, None] - ((bits >> EXPONENT_SHIFT) & EXPONENT)
        for d in tl.static_range(LOWER_TOPS):
            beyond = tl.sum((((below < d) | (below >= d + WINDOW)) & valid).to(tl.int32), axis=1)
            outside += tl.where(lower == d, beyond[:, None], 0)
    # The fewest, and of as many the highest.
    best = tl.min(outside * LOWER_TOPS + lower, axis=1) % LOWER_TOPS
    top = tl.where(largest == 0, 0, tl.maximum(largest - best, LEAST_TOP))
    return top, largest < NOT_FINITE


@triton.jit
def _times(value, power):
    """float32 times 2^power, in two factors, as that may not be a normal number."""
    half = power // 2
    first = ((half + 127) << 23).to(tl.float32, bitcast=True)
    second = ((power - half + 127) << 23).to(tl.float32, bitcast=True)
    return value * first * second


@triton.jit
def _scaled(bits, top):
    """(bits of the weights times 2^(TOP - top) in bfloat16; whether that is without loss, as it is but for the smallest numbers)"""
    value = (bits << 16).to(tl.float32, bitcast=True)
    scaled = _times(value, -(top - TOP)).to(tl.int32, bitcast=True) >> 16 << 16
    back = _times(scaled.to(tl.float32, bitcast=True), top - TOP)
    return (scaled >> 16) & 0xFFFF, back == value


@triton.jit
def _of_rows(values, row):
    """`values` [16] of these rows."""
    rows = tl.arange(0, GROUP_ROWS)[None, :]
    return tl.sum(tl.where(rows == row[:, None], values[None, :], 0), axis=1)


@triton.jit
def _with_records(first, second, count, flipped, lane, index):
    """A group's patches, four records to an int64, and how many, with what is `flipped` in a weight of each lane."""
    there = (flipped != 0).to(tl.int32)
    more = tl.sum(there, axis=0)
    if more > 0:
        record = lane << 9 | index << 4 | flipped
        number = count + tl.cumsum(there, axis=0) - there
        for i in tl.static_range(PATCHES):
            one = tl.sum(tl.where((there != 0) & (number == i), record, 0), axis=0).to(tl.int64)
            if i < PATCHES // 2:
                first |= one << (PATCH_BITS * i)
            else:
                second |= one << (PATCH_BITS * (i - PATCHES // 2))
    return first, second, count + more


@triton.jit
def pack_weights(
    source,  # bfloat16 [matrices, k / 64, n, 64]
    words,
    scales,
    flags,
    patches,
    failures,  # int32, added to
    matrices,
    n,
    k,
    valid_columns,  # the others are padding, which rows have zeros for
):
    """Persistent over groups of all matrices."""
    groups = n // GROUP_ROWS
    panels = k // PANEL
    flag_words = tl.cdiv(panels, FLAG_BITS)
    PLANE: tl.constexpr = PLANE_ROWS * PLANE_COLUMNS
    BLOCK_GROUPS: tl.constexpr = BLOCK_ROWS // GROUP_ROWS
    # A word of each plane is a lane's, of 16 columns.
    place = tl.arange(0, PLANE // BLOCK_GROUPS)
    lane, sixteen = place // 4, place % 4
    failed = 0
    for work in range(tl.program_id(0), matrices * groups, tl.num_programs(0)):
        matrix = work // groups
        group = work - matrix * groups
        rows = source + matrix.to(tl.int64) * n * k + group * (GROUP_ROWS * PANEL)
        tops, finite = _windows(rows, n, k, valid_columns)
        scale = tl.where(tops == 0, 0.0, (tl.maximum(tops, 1) << 23).to(tl.float32, bitcast=True))
        tl.store(scales + matrix * n + group * GROUP_ROWS + tl.arange(0, GROUP_ROWS), scale)
        failed += tl.sum((finite == 0).to(tl.int32), axis=0)
        # Of rows whose words do not matter none.
        tops = tl.where(finite, tops, 0)
        even_tops, odd_tops = _of_rows(tops, lane // 4 * 2), _of_rows(tops, lane // 4 * 2 + 1)
        word = 0
        for panel in range(0, panels):
            low, high, upper = tl.zeros_like(place), tl.zeros_like(place), tl.zeros_like(place)
            first, second, count = tl.zeros([], tl.int64), tl.zeros([], tl.int64), 0
            for weight in tl.static_range(8):
                row = lane // 4 * 2 + weight // 2 % 2
                column = sixteen * 16 + weight // 4 * 8 + lane % 4 * 2 + weight % 2
                value = tl.load(rows + panel.to(tl.int64) * n * PANEL + row * PANEL + column)
                bits = value.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
                top = odd_tops if weight // 2 % 2 else even_tops
                valid = (top != 0) & (panel * PANEL + column < valid_columns)
                scaled, exact = _scaled(bits, top)
                scaled = tl.where(valid, scaled, UPPER << UPPER_SHIFT)
                failed += tl.sum((valid & (exact == 0)).to(tl.int32), axis=0)
                flipped = tl.where(valid, ((scaled >> UPPER_SHIFT) & 15) ^ UPPER, 0)
                first, second, count = _with_records(first, second, count, flipped, lane, sixteen * 8 + weight)
                sign, exponent = (scaled >> 15) & 1, (scaled >> 8) & 7
                byte = weight % 4 * 8
                if weight < 4:
                    low |= (scaled & 0xFF) << byte
                    upper |= sign << (byte + 7) | exponent << byte
                else:
                    high |= (scaled & 0xFF) << byte
                    # Turned by 4 bits to the left.
                    upper |= sign << ((byte + 11) % 32) | exponent << (byte + 4)
            block = (matrix.to(tl.int64) * panels + panel) * (n // BLOCK_ROWS) + group // BLOCK_GROUPS
            at = words + block * BLOCK_WORDS + group % BLOCK_GROUPS * (PLANE // BLOCK_GROUPS) + place
            tl.store(at, low)
            tl.store(at + PLANE, high)
            tl.store(at + 2 * PLANE, upper)
            at = patches + ((matrix.to(tl.int64) * panels + panel) * groups + group) * (PATCHES // 4)
            tl.store(at, first)
            tl.store(at + 1, second)
            failed += (count > PATCHES).to(tl.int32)
            word |= (count > 0).to(tl.int32) << (panel % FLAG_BITS)
            if (panel % FLAG_BITS == FLAG_BITS - 1) | (panel == panels - 1):
                tl.store(flags + (matrix * groups + group) * flag_words + panel // FLAG_BITS, word)
                word = 0
    tl.atomic_add(failures, failed, mask=failed > 0)
