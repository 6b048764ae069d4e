"""Weights of 12 bits as they lie, and back into the first operand of a product: bfloat16 without loss.

A bfloat16 has 8 bits of exponent, and of 16 neighbouring exponents nearly all weights of a matrix's row have one. So a weight
keeps its sign, its 7 bits of mantissa and the lower 4 bits of its exponent, once its row has been multiplied by a power of two
that puts its window of exponents where the upper 4 bits are 0111. Products are made of rows so multiplied, and their sums are
multiplied by the row's scale at the end, which changes no bit of a mantissa. A weight outside of the window, or a zero, gets a
patch: what its upper 4 bits differ by. A row of nothing but zeros has the scale 0.

Words. What a warp multiplies at a time, 16 rows x 64 columns of a panel, is a group: 12 words a lane in three planes. A word of
each plane has 8 weights of one lane for 16 columns, in the order of its registers: two words of lower bytes (the last bit of the
exponent and the mantissa), and one that has for each weight the upper byte without its constant bits, those of four weights turned
by 4 bits between those of the others. So one permutation of bytes makes two weights in a register, and three instructions make
eight upper bytes. Of a group's rows the even ones come first, so that a lane has the gate and the value that an activation joins.
Four groups, 64 rows, lie together, plane after plane, [matrices, k / 64, n / 64, 3, 16, 32] words, in rows of 128 bytes for
tensor maps.

Patches. A group has up to 8 in a panel, [matrices, k / 64, n / 16, 8] records of 16 bits: what to flip (4 bits), which of the lane's
32 weights (5), which lane (5). A bit a panel, [matrices, n / 16, k / 64 / 32] words, says whether there are any: a warp has those of
32 steps of a tile in a register.
"""

import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# Rows of a group, which a warp multiplies at a time, and of the groups that lie together, a warp group's.
GROUP_ROWS = tl.constexpr(16)
BLOCK_ROWS = tl.constexpr(64)
PLANES = tl.constexpr(3)
# Words of a plane of 64 rows x 64 columns: rows of 128 bytes.
PLANE_ROWS = tl.constexpr(16)
PLANE_COLUMNS = tl.constexpr(32)
BLOCK_WORDS = tl.constexpr(PLANES.value * PLANE_ROWS.value * PLANE_COLUMNS.value)
# Patches of a group in a panel.
PATCHES = tl.constexpr(8)
PATCH_BITS = tl.constexpr(16)
# int64 numbers that hold these.
RECORDS = tl.constexpr(PATCHES.value * PATCH_BITS.value // 64)
# Panels that a word of flags speaks of.
FLAG_BITS = tl.constexpr(32)

# Exponents of a row's window, the largest of them, and its upper 4 bits.
WINDOW = tl.constexpr(16)
TOP = tl.constexpr(127)
UPPER = tl.constexpr(7)
# Where a bfloat16 has them.
UPPER_SHIFT = tl.constexpr(11)

# A lane's words of all planes: 16 columns after the other, a lane after the other, a warp after the other; and of the eight
# weights in them the registers.
WEIGHTS = gl.constexpr(
    gl.DistributedLinearLayout(
        reg_bases=[[0, 0, 0, 0, 1], [0, 0, 0, 0, 2], [0, 0, 0, 0, 4], [0, 0, 0, 1, 0], [0, 0, 0, 2, 0]],
        lane_bases=[[0, 0, 0, 4, 0], [0, 0, 0, 8, 0], [0, 0, 0, 16, 0], [0, 0, 1, 0, 0], [0, 0, 2, 0, 0]],
        warp_bases=[[0, 0, 4, 0, 0], [0, 0, 8, 0, 0]],
        block_bases=[],
        shape=[1, 1, 16, 32, 8],
    )
)
WORDS = gl.constexpr(gl.SliceLayout(4, WEIGHTS.value))
# Four words of two weights, and the four that they are made of, each as often as there are weights.
OPERAND_CONSTRAINTS = gl.constexpr(",".join(["=r"] * 4 + ["r"] * 32))


@gluon.jit
def plain_row(fragment):
    """The row of a group, or of several, that a row of the first operand is."""
    return fragment // GROUP_ROWS * GROUP_ROWS + fragment % 8 * 2 + fragment % GROUP_ROWS // 8


@triton.jit
def half_words(upper):
    """Of words of a lane's upper bytes those of the first four weights, and of the others, without patches."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 turned;
        shf.r.wrap.b32 turned, $2, $2, 4;
        lop3.b32 $0, $2, 0x87878787, 0x38383838, 0xea;
        lop3.b32 $1, turned, 0x87878787, 0x38383838, 0xea;
        }""",
        "=r,=r,r",
        [upper],
        dtype=(tl.int32, tl.int32),
        is_pure=True,
        pack=1,
    )


@gluon.jit
def halves(planes):
    """Of a warp group's [64, 64] weights lower and upper bytes, in words of four, without patches; from the planes' memory."""
    low, high, upper = planes
    low, high = low.load(WORDS), high.load(WORDS)
    even, odd = half_words(upper.load(WORDS))
    return low, high, even, odd


@gluon.jit
def patched(words, records):
    """The same with a group's patches, four records to an int64."""
    low, high, even, odd = words
    row = gl.arange(0, PLANE_ROWS, layout=gl.SliceLayout(0, gl.SliceLayout(0, gl.SliceLayout(3, WORDS))))
    column = gl.arange(0, PLANE_COLUMNS, layout=gl.SliceLayout(0, gl.SliceLayout(0, gl.SliceLayout(2, WORDS))))
    row = row.expand_dims(0).expand_dims(0).expand_dims(3)
    column = column.expand_dims(0).expand_dims(0).expand_dims(2)
    # A lane, its 16 columns and which four of the eight weights: the upper bits of a record.
    place = (row % 4 * 8 + column // 4) * 8 + column % 4 * 2
    # So that it becomes 0 whatever is in memory; records have 14 bits.
    records = records.to(gl.uint64)
    while records != 0:
        record = (records & 0xFFFF).to(gl.int32)
        flipped = (record & 15) << (UPPER_SHIFT - 8 + (record >> 4 & 3) * 8)
        at = record >> 6
        even ^= gl.where(place == at, flipped, 0)
        odd ^= gl.where(place + 1 == at, flipped, 0)
        records = records >> PATCH_BITS
    return low, high, even, odd


@gluon.jit
def operand(words, SUMS: gl.constexpr):
    """[64, 64] bfloat16, as the first operand of a product whose sums lie as SUMS has it.

    An instruction for two weights, and these right in front of the product: ptxas waits for a product that is under way before
    anything is written that is an operand of a later one.
    """
    low, high, even, odd = words
    shape: gl.constexpr = [1, 1, PLANE_ROWS.value, PLANE_COLUMNS.value, 8]
    wide = gl.zeros(shape, gl.int32, layout=WEIGHTS)
    weights = gl.inline_asm_elementwise(
        "prmt.b32 $0, $4, $20, 0x5140; prmt.b32 $1, $4, $20, 0x7362; prmt.b32 $2, $12, $28, 0x5140; prmt.b32 $3, $12, $28, 0x7362;",
        OPERAND_CONSTRAINTS,
        [low.expand_dims(4) | wide, high.expand_dims(4) | wide, even.expand_dims(4) | wide, odd.expand_dims(4) | wide],
        dtype=gl.bfloat16,
        is_pure=True,
        pack=8,
    )
    # From [warp, lane / 8, lane % 8 / 4, lane % 4, 16 columns, half of these, half of the rows, column]
    weights = weights.reshape([4, 4, 2, 4, 4, 2, 2, 2]).permute([0, 6, 1, 2, 4, 5, 3, 7]).reshape([BLOCK_ROWS, 64])
    return gl.convert_layout(weights, gl.DotOperandLayout(0, SUMS, 2), assert_trivial=True)
