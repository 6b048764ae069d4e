"""decode.py's two products on weights of 12 bits (packed_words.py), on sm_90: three quarters of the bytes, by tensor cores.

A program owns a group of 16 weight rows and the whole of k, of which its warps take panels in turn. What a lane reads of a panel, four
words of each plane, is what a warp multiplies: four products of 16 x 16 weights (mma.m16n8k16), expanded in registers, by a vector
that stands in all eight columns. So a lane has its rows' sums over a panel without asking others: the first row of a pair, a gate, in
one register and the second, its value, in another. Expanded to float32 and multiplied one by one, as decode.py does, a weight would take
three times the instructions.

Tensors have an element a thread, and no more than a word is exchanged between lanes until the end, never between warps: these go
through loops of their own, in which no barrier may stand. Which panel it is differs between warps, which
Triton's scalars do not know, and need not: so words are loaded by instructions of their own, sixteen bytes a lane, all that a warp has
of a step before anything is multiplied, and patches are put in by a loop that a warp goes through by itself. Flags are not looked at: a
group's records are read along with its words, a hundredth of the bytes, so that no load waits for another.

What else there is to say of slots, the order of choices, routing along and the L2, decode.py says. Sums are in another order than
there, and so are not the same bits. A row of zeros has the scale 0, and words that are finite.
"""

import triton
import triton.language as tl

from l2 import load_words, read_once
from overlap import release, wait
from routing.route import pick, route_few

from .activation import join_gate
from .combine import WEIGHTS, add_shared_and_residual
from .decode import MOST_CHOICES, SECOND_BIAS, SECOND_READ_ONCE, choice_at, choices_in_order, tidy_from_last
from .grouped import BIAS, PANEL, READ_ONCE
from .packed_words import BLOCK_ROWS, BLOCK_WORDS, GROUP_ROWS, PATCH_BITS, PLANES, RECORDS, UPPER_SHIFT, half_words

# Words of a group in a plane, and of a plane of the groups that lie together.
GROUP_WORDS = tl.constexpr(BLOCK_WORDS.value // PLANES.value * GROUP_ROWS.value // BLOCK_ROWS.value)
PLANE_WORDS = tl.constexpr(BLOCK_WORDS.value // PLANES.value)
# Products of 16 columns in a panel: words of a plane that a lane has.
SIXTEENS = tl.constexpr(4)


@triton.jit
def _warp():
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
def _ask(words, patches, x, there, lane):
    """A panel of a group: a lane's words of each plane, the patches, and what of x they are multiplied by. Nothing unless it is `there`."""
    asked = lane * 0 + there.to(tl.int32)
    planes = ()
    for plane in tl.static_range(PLANES):
        planes += (load_words(words + plane * PLANE_WORDS, asked),)
    first = tl.load(patches, mask=there, other=0)
    second = tl.load(patches + 1, mask=there, other=0)
    rows = ()
    for nth in tl.static_range(SIXTEENS * 2):
        rows += (tl.load(x + nth * 4, mask=there, other=0),)
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
def _sums(asked, lane):
    """(sum of the first row of a lane's pair of rows over a panel, and of the second)"""
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
    return sums[0], sums[2]


@triton.jit
def _strides(n):
    """From a panel to the next, words and patches."""
    return (n // BLOCK_ROWS * BLOCK_WORDS).to(tl.int64), (n // GROUP_ROWS * RECORDS).to(tl.int64)


@triton.jit
def _group(words, patches, matrix, part, n, k):
    """Where a group's words and patches of panel 0 are."""
    word_stride, patch_stride = _strides(n)
    panel = matrix * (k // PANEL)
    words += panel * word_stride + part // (BLOCK_ROWS // GROUP_ROWS) * BLOCK_WORDS
    return words + part % (BLOCK_ROWS // GROUP_ROWS) * GROUP_WORDS, patches + panel * patch_stride + part * RECORDS


@triton.jit
def _row(x, row, pitch, lane):
    """Where a lane's words of a row of x are, of its first panel."""
    return (x + row.to(tl.int64) * pitch).to(tl.pointer_type(tl.int32)) + lane % 4


@triton.jit
def _over_warps(sums, WARPS: tl.constexpr):
    """[32], by lane."""
    return tl.sum(sums.reshape(WARPS, 32), axis=0)


@triton.jit
def _product(
    slot, token, matrix, part, x, words, scales, patches, bias, out, n, k, x_pitch, out_pitch, options, code, linear,
    cubic, limit, shift,
    ACTIVATION: tl.constexpr, PANELS: tl.constexpr, WARPS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Of a slot's row of `out` what the group `part` gives: 8 columns."""
    lane = tl.arange(0, 32 * WARPS) % 32
    warp = _warp()
    panels = k // PANEL
    word_stride, patch_stride = _strides(n)
    group_words, group_patches = _group(words, patches, matrix, part, n, k)
    lane_words = group_words + warp * word_stride + lane * SIXTEENS
    group_patches += warp * patch_stride
    x_words = _row(x, token, x_pitch, lane) + warp * (PANEL // 2)
    gates = lane * 0.0
    values = lane * 0.0
    read_once(options & READ_ONCE)
    for begin in tl.range(warp, panels, WARPS * PANELS, num_stages=1):
        asked = ()
        for _ in tl.static_range(PANELS):
            asked += (_ask(lane_words, group_patches, x_words, begin < panels, lane),)
            begin += WARPS
            lane_words += WARPS * word_stride
            group_patches += WARPS * patch_stride
            x_words += WARPS * (PANEL // 2)
        for ahead in tl.static_range(PANELS):
            gate, value = _sums(asked[ahead], lane)
            gates += gate
            values += value
    release(DEPENDENT)
    gates = _over_warps(gates, WARPS)
    values = _over_warps(values, WARPS)
    # All four lanes that have a pair of rows have the same.
    pair = tl.arange(0, 32) // 4
    row = matrix * n + part * GROUP_ROWS + 2 * pair
    gates = gates * tl.load(scales + row)
    values = values * tl.load(scales + row + 1)
    if (options & BIAS) != 0:
        gates = gates + tl.load(bias + row)
        values = values + tl.load(bias + row + 1)
    result = join_gate(gates, values, code, linear, cubic, limit, shift, ACTIVATION)
    at = out + slot.to(tl.int64) * out_pitch + part * (GROUP_ROWS // 2) + pair
    tl.store(at, result.to(out.dtype.element_ty), mask=tl.arange(0, 32) % 4 == 0)


@triton.jit
def decode_packed_first(
    x,  # bfloat16 [tokens, x_pitch]
    words,
    scales,
    patches,
    bias,  # float32 [matrices, n], if BIAS
    out,  # bfloat16 [slots, out_pitch], rows in slot order
    ids,  # int32 [slots]: negative for a dropped slot, whose row is not written
    tokens,  # int32 [1]
    n,
    k,
    x_pitch,
    out_pitch,
    top_k,
    options,
    code,
    linear,
    cubic,
    limit,
    shift,
    ACTIVATION: tl.constexpr,
    PANELS: tl.constexpr,
    WARPS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Program (slot, i): group i of the slot's expert, against the slot's token. Gated, as all first products of packed weights."""
    wait(DEPENDENT)
    slot = tl.program_id(0)
    token = slot // top_k
    matrix = tl.load(ids + slot)
    if (token >= tl.load(tokens)) | (matrix < 0):
        return
    _product(
        slot, token, matrix, tl.program_id(1), x, words, scales, patches, bias, out, n, k, x_pitch, out_pitch, options,
        code, linear, cubic, limit, shift, ACTIVATION, PANELS, WARPS, DEPENDENT,
    )  # fmt: skip


@triton.jit
def decode_packed_routing(
    x,  # as for decode_packed_first, and so on
    words,
    scales,
    patches,
    bias,
    out,
    ids,  # out, and all to `scale`: as for decode_routing
    tokens,
    logits,
    logits_kind,
    weights,
    counts,
    counts_host,
    fault,
    fault_host,
    scoring,
    route_options,
    scale,
    experts,
    most_tokens,
    n,
    k,
    x_pitch,
    out_pitch,
    top_k,
    options,
    code,
    linear,
    cubic,
    limit,
    shift,
    ACTIVATION: tl.constexpr,
    PANELS: tl.constexpr,
    EXPERTS: tl.constexpr,
    TOKENS: tl.constexpr,
    WARPS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Program (slot, i): as program (slot, i - 1) of decode_packed_first; (0, 0): routing of all tokens."""
    wait(DEPENDENT)
    slot = tl.program_id(0)
    part = tl.program_id(1) - 1
    if part < 0:
        if slot == 0:
            row = tl.arange(0, TOKENS)[:, None, None]
            route_few(
                logits, logits_kind, row, row < tl.load(tokens), ids, weights, counts, counts_host, fault, fault_host, experts, top_k,
                most_tokens, scoring, route_options, scale, EXPERTS, TOKENS,
            )  # fmt: skip
        return
    token = slot // top_k
    if token >= tl.load(tokens):
        return
    matrix = pick(logits, logits_kind, token, slot - token * top_k, experts, EXPERTS, WARPS)
    _product(
        slot, token, matrix, part, x, words, scales, patches, bias, out, n, k, x_pitch, out_pitch, options, code, linear,
        cubic, limit, shift, ACTIVATION, PANELS, WARPS, DEPENDENT,
    )  # fmt: skip


@triton.jit
def decode_packed_second(
    x,  # bfloat16 [slots, x_pitch]: what the first kernel wrote
    words,
    scales,
    patches,
    bias,  # float32 [matrices, n], if SECOND_BIAS
    ids,  # int32 [slots]: negative for a dropped slot
    weights,  # float32 [slots], if WEIGHTS
    shared,  # and so on: as for decode_second
    shared_scale,
    residual,
    out,
    tokens,
    width,
    n,
    k,
    x_pitch,
    row_pitch,
    top_k,
    options,
    tidy_counts,
    tidy_out,
    tidy_counts_host,
    tidy_fault,
    tidy_fault_host,
    tidy_experts,
    tidy_options,
    PANELS: tl.constexpr,
    WARPS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Program (token, i): outputs 16 i and on, summed over the token's choices in order of their ids."""
    tidy_from_last(tidy_counts, tidy_out, tidy_counts_host, tidy_fault, tidy_fault_host, tidy_experts, tidy_options)
    wait(DEPENDENT)
    token = tl.program_id(0)
    if token >= tl.load(tokens):
        return
    part = tl.program_id(1)
    lane = tl.arange(0, 32 * WARPS) % 32
    pairs = part * GROUP_ROWS + lane // 4 * 2
    tl.static_assert(MOST_CHOICES <= 32, "a warp by itself finds the choice that is next")
    keys, rank, known = choices_in_order(ids, token, top_k)
    evens = lane * 0.0
    odds = lane * 0.0
    read_once(options & SECOND_READ_ONCE)
    panels = k // PANEL
    word_stride, patch_stride = _strides(n)
    # Panels of all choices one after the other, so that warps have as many of them.
    for begin in tl.range(_warp(), top_k * panels, WARPS * PANELS, num_stages=1):
        asked = ()
        factors = ()
        for ahead in tl.static_range(PANELS):
            place = begin + ahead * WARPS
            turn = place // panels
            matrix, slot = choice_at(turn, keys, rank, known, token, top_k)
            there = (turn < top_k) & (matrix >= 0)
            matrix = tl.where(there, matrix, 0)
            weight = tl.load(weights + slot, mask=there & ((options & WEIGHTS) != 0), other=1.0)
            row = matrix * n + pairs
            factors += ((tl.load(scales + row) * weight, tl.load(scales + row + 1) * weight),)
            panel = place - turn * panels
            group_words, group_patches = _group(words, patches, matrix, part, n, k)
            lane_words = group_words + panel * word_stride + lane * SIXTEENS
            x_words = _row(x, slot, x_pitch, lane) + panel * (PANEL // 2)
            asked += (_ask(lane_words, group_patches + panel * patch_stride, x_words, there, lane),)
        for ahead in tl.static_range(PANELS):
            even, odd = _sums(asked[ahead], lane)
            even_factor, odd_factor = factors[ahead]
            evens += even * even_factor
            odds += odd * odd_factor
    first = _over_warps(evens, WARPS)
    second = _over_warps(odds, WARPS)
    # A row to each of 16 lanes: [pair, 4 lanes that have the same], of which the first two take the pair's rows.
    within = tl.arange(0, 32) % 4
    total = tl.where(within == 0, first, second)
    rows = part * GROUP_ROWS + tl.arange(0, 32) // 4 * 2 + within
    inside = (within < 2) & (rows < width)
    if (options & SECOND_BIAS) != 0:
        for choice in range(top_k):
            slot = token * top_k + choice
            matrix = tl.load(ids + slot)
            taken = matrix >= 0
            weight = tl.load(weights + slot, mask=taken & ((options & WEIGHTS) != 0), other=1.0)
            total += weight * tl.load(bias + matrix * n + rows, mask=taken & inside, other=0.0)
    total = add_shared_and_residual(total, token, rows, inside, shared, shared_scale, residual, row_pitch, options)
    tl.store(out + token.to(tl.int64) * width + rows, total.to(out.dtype.element_ty), mask=inside)
