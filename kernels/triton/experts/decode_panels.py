"""What decode's products on weights of 12 bits have in common (decode_packed.py, decode_packed_second.py): a panel of a group of weight rows,
as a warp reads, expands and multiplies it, and which slots share an expert.

It is no kernel. decode_packed.py says what for.
"""

import triton
import triton.language as tl

from l2 import load_words

from .decode import MOST_CHOICES
from .grouped import PANEL
from .packed_words import BLOCK_ROWS, BLOCK_WORDS, GROUP_ROWS, PATCH_BITS, PLANES, RECORDS, UPPER_SHIFT, half_words

# Words of a group in a plane, and of a plane of the groups that lie together.
GROUP_WORDS = tl.constexpr(BLOCK_WORDS.value // PLANES.value * GROUP_ROWS.value // BLOCK_ROWS.value)
PLANE_WORDS = tl.constexpr(BLOCK_WORDS.value // PLANES.value)
# Products of 16 columns in a panel: words of a plane that a lane has.
SIXTEENS = tl.constexpr(4)
# Most tokens: half of the columns that a product has.
MOST_TOKENS = tl.constexpr(4)
# The byte of a token that has no slot, above all that there are.
NO_SLOT = tl.constexpr(255)


@triton.jit
def this_warp():
    """Which warp this is: a number that differs between warps."""
    return tl.inline_asm_elementwise(
        "{ .reg .b32 warp; mov.u32 warp, %tid.x; shr.u32 warp, warp, 5; add.u32 $0, warp, $1; }",
        "=r,r",
        [0],
        dtype=tl.int32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def slot_in(slots, token):
    """Of a word of slots, a byte for each token, one of them; NO_SLOT if it has none."""
    return slots >> (8 * token) & NO_SLOT


@triton.jit
def ask_panel(words, patches, x, there, has, lane):
    """A panel of a group: a lane's words of each plane, the patches, and what of x they are multiplied by, of a token that `has` a row.
    Nothing unless it is `there`."""
    asked = lane * 0 + there.to(tl.int32)
    planes = ()
    for plane in tl.static_range(PLANES):
        planes += (load_words(words + plane * PLANE_WORDS, asked),)
    first = tl.load(patches, mask=there, other=0)
    second = tl.load(patches + 1, mask=there, other=0)
    rows = ()
    for nth in tl.static_range(SIXTEENS * 2):
        rows += (tl.load(x + nth * 4, mask=there & has, other=0),)
    return planes, first, second, rows


@triton.jit
def _patched(evens, odds, records, lane):
    """Upper bytes with a group's patches, four records to an int64."""
    # So that it becomes 0 whatever is in memory; records have 14 bits.
    records = records.to(tl.uint64)
    while records != 0:
        record = (records & 0xFFFF).to(tl.int32)
        flipped = (record & 15) << (UPPER_SHIFT - 8 + (record >> 4 & 3) * 8)
        mine = tl.where(lane == record >> 9, flipped, 0)
        # Which of the lane's eight words of upper bytes.
        nth = record >> 6 & 7
        even = ()
        odd = ()
        for sixteen in tl.static_range(SIXTEENS):
            even += (evens[sixteen] ^ tl.where(nth == 2 * sixteen, mine, 0),)
            odd += (odds[sixteen] ^ tl.where(nth == 2 * sixteen + 1, mine, 0),)
        evens = even
        odds = odd
        records = records >> PATCH_BITS
    return evens, odds


@triton.jit
def panel_sums(asked, lane):
    """Sums over a panel of a lane's pair of rows: (of the first row for a token and for the next, of the second row likewise)"""
    planes, first, second, rows = asked
    lows, highs, uppers = planes
    evens = ()
    odds = ()
    for sixteen in tl.static_range(SIXTEENS):
        even, odd = half_words(uppers[sixteen])
        evens += (even,)
        odds += (odd,)
    if (first | second) != 0:
        evens, odds = _patched(evens, odds, first, lane)
        evens, odds = _patched(evens, odds, second, lane)
    sums = (lane * 0.0, lane * 0.0, lane * 0.0, lane * 0.0)
    for sixteen in tl.static_range(SIXTEENS):
        sums = tl.inline_asm_elementwise(
            """{
            .reg .b32 a<4>;
            prmt.b32 a0, $4, $6, 0x5140;
            prmt.b32 a1, $4, $6, 0x7362;
            prmt.b32 a2, $5, $7, 0x5140;
            prmt.b32 a3, $5, $7, 0x7362;
            mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {$0, $1, $2, $3}, {a0, a1, a2, a3}, {$8, $9}, {$10, $11, $12, $13};
            }""",
            "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f",
            [lows[sixteen], highs[sixteen], evens[sixteen], odds[sixteen], rows[2 * sixteen], rows[2 * sixteen + 1],
             sums[0], sums[1], sums[2], sums[3]],
            dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
            is_pure=True,
            pack=1,
        )  # fmt: skip
    return sums


@triton.jit
def strides(n):
    """From a panel to the next, words and patches."""
    return (n // BLOCK_ROWS * BLOCK_WORDS).to(tl.int64), (n // GROUP_ROWS * RECORDS).to(tl.int64)


@triton.jit
def place_of_group(words, patches, matrix, part, n, k):
    """Where a group's words and patches of panel 0 are."""
    word_stride, patch_stride = strides(n)
    panel = matrix * (k // PANEL)
    words += panel * word_stride + part // (BLOCK_ROWS // GROUP_ROWS) * BLOCK_WORDS
    return words + part % (BLOCK_ROWS // GROUP_ROWS) * GROUP_WORDS, patches + panel * patch_stride + part * RECORDS


@triton.jit
def lane_row(x, row, pitch, lane):
    """Where a lane's words of a row of x are, of its first panel."""
    return (x + row.to(tl.int64) * pitch).to(tl.pointer_type(tl.int32)) + lane % 4


@triton.jit
def over_warps(sums, WARPS: tl.constexpr):
    """[32], by lane."""
    return tl.sum(sums.reshape(WARPS, 32), axis=0)


@triton.jit
def choices_of(ids, live, top_k):
    """Of each token its choices' experts, [MOST_CHOICES], negative where there are none."""
    tl.static_assert(MOST_TOKENS * MOST_CHOICES <= NO_SLOT, "a slot has a byte")
    choice = tl.arange(0, MOST_CHOICES)
    choices = ()
    for token in tl.static_range(MOST_TOKENS):
        choices += (tl.load(ids + token * top_k + choice, mask=(choice < top_k) & (token < live), other=-1),)
    return choices


@triton.jit
def slots_of(matrix, choices, top_k):
    """A word of slots: of each token the one that has the matrix."""
    choice = tl.arange(0, MOST_CHOICES)
    slots = 0
    for token in tl.static_range(MOST_TOKENS):
        slot = tl.min(tl.where(choices[token] == matrix, token * top_k + choice, NO_SLOT), axis=0)
        slots = slots | slot << (8 * token)
    return slots
