"""decode.py's two products on weights of 12 bits (packed_words.py), on sm_90: three quarters of the bytes, by tensor cores. This is the
first one; decode_packed_second.py is the second, and decode_panels.py what both do with weights.

A program owns a group of 16 weight rows and the whole of k, of which its warps take panels in turn. What a lane reads of a panel, four
words of each plane, is what a warp multiplies: four products of 16 x 16 weights (mma.m16n8k16), expanded in registers, by a vector
that stands in all eight columns, or by those of four tokens, each in two. So a lane has sums over a panel without asking others, for two
columns: the first row of a pair, a gate, in one register and the second, its value, in another. Expanded to float32 and multiplied one by
one, as decode.py does, a weight would take three times the instructions.

Shared experts. Expanding is what a program does most, so where tokens are taken together (JOINT) those that share an expert share that: one
program, of the first that chose it, multiplies for all of them, and those of the others have nothing to do. What a token gets then is the
same bits, whoever shares its experts.

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

from l2 import read_once
from overlap import release, wait
from routing.route import pick, route_few, turns

from .activation import join_gate
from .decode_panels import (
    MOST_TOKENS,
    NO_SLOT,
    SIXTEENS,
    ask_panel,
    choices_of,
    lane_row,
    over_warps,
    panel_sums,
    place_of_group,
    slot_in,
    slots_of,
    strides,
    this_warp,
)
from .grouped import BIAS, PANEL, READ_ONCE
from .packed_words import GROUP_ROWS


@triton.jit
def _put(
    slot, gates, values, matrix, part, scales, bias, out, n, out_pitch, options, code, linear, cubic, limit, shift,
    ACTIVATION: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """From what lanes have summed of a group's pairs of rows to columns of `out`, each in the row of its lane's slot, if it has any."""
    gates = over_warps(gates, WARPS)
    values = over_warps(values, WARPS)
    pair = tl.arange(0, 32) // 4
    row = matrix * n + part * GROUP_ROWS + 2 * pair
    gates = gates * tl.load(scales + row)
    values = values * tl.load(scales + row + 1)
    if (options & BIAS) != 0:
        gates = gates + tl.load(bias + row)
        values = values + tl.load(bias + row + 1)
    result = join_gate(gates, values, code, linear, cubic, limit, shift, ACTIVATION)
    at = out + slot.to(tl.int64) * out_pitch + part * (GROUP_ROWS // 2) + pair
    tl.store(at, result.to(out.dtype.element_ty), mask=slot != NO_SLOT)


@triton.jit
def _product(
    slots, token, matrix, part, x, words, scales, patches, bias, out, n, k, x_pitch, out_pitch, options, code, linear, cubic, limit,
    shift,
    ACTIVATION: tl.constexpr, JOINT: tl.constexpr, PANELS: tl.constexpr, WARPS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Of rows of `out` what the group `part` gives, 8 columns, against the tokens that these slots are of, or of a single one."""
    lane = tl.arange(0, 32 * WARPS) % 32
    warp = this_warp()
    panels = k // PANEL
    word_stride, patch_stride = strides(n)
    group_words, group_patches = place_of_group(words, patches, matrix, part, n, k)
    lane_words = group_words + warp * word_stride + lane * SIXTEENS
    group_patches += warp * patch_stride
    if JOINT:
        token = lane // 4 % MOST_TOKENS
        has = slot_in(slots, token) != NO_SLOT
    else:
        has = True
    x_words = lane_row(x, token, x_pitch, lane) + warp * (PANEL // 2)
    gates = lane * 0.0
    next_gates = lane * 0.0
    values = lane * 0.0
    next_values = lane * 0.0
    read_once(options & READ_ONCE)
    for begin in tl.range(warp, panels, WARPS * PANELS, num_stages=1):
        asked = ()
        for _ in tl.static_range(PANELS):
            asked += (ask_panel(lane_words, group_patches, x_words, begin < panels, has, lane),)
            begin += WARPS
            lane_words += WARPS * word_stride
            group_patches += WARPS * patch_stride
            x_words += WARPS * (PANEL // 2)
        for ahead in tl.static_range(PANELS):
            gate, next_gate, value, next_value = panel_sums(asked[ahead], lane)
            gates += gate
            next_gates += next_gate
            values += value
            next_values += next_value
    release(DEPENDENT)
    if JOINT:
        # Of the four lanes that have a pair of rows the first two have two tokens each, and the others the same.
        first = tl.arange(0, 32) % 4 * 2
        slot = tl.where(first < MOST_TOKENS, slot_in(slots, first % MOST_TOKENS), NO_SLOT)
        next_slot = tl.where(first < MOST_TOKENS, slot_in(slots, first % MOST_TOKENS + 1), NO_SLOT)
    else:
        # All four have the same.
        slot = tl.where(tl.arange(0, 32) % 4 == 0, slots, NO_SLOT)
    _put(slot, gates, values, matrix, part, scales, bias, out, n, out_pitch, options, code, linear, cubic, limit, shift, ACTIVATION, WARPS)
    if JOINT:
        _put(
            next_slot, next_gates, next_values, matrix, part, scales, bias, out, n, out_pitch, options, code, linear, cubic, limit, shift,
            ACTIVATION, WARPS,
        )  # fmt: skip


@triton.jit
def _leads(slots, token):
    """Whether no token before this one has a slot."""
    before = (1 << (8 * token)) - 1
    return (slots | ~before) == -1


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
    JOINT: tl.constexpr,
    PANELS: tl.constexpr,
    WARPS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Program (slot, i): group i of the slot's expert, against its token; if JOINT against all that chose it, unless a token before did.
    Gated, as all first products of packed weights."""
    wait(DEPENDENT)
    slot = tl.program_id(0)
    token = slot // top_k
    live = tl.load(tokens)
    matrix = tl.load(ids + slot)
    if (token >= live) | (matrix < 0):
        return
    slots = slot
    if JOINT:
        slots = slots_of(matrix, choices_of(ids, live, top_k), top_k)
        if not _leads(slots, token):
            return
    _product(
        slots, token, matrix, tl.program_id(1), x, words, scales, patches, bias, out, n, k, x_pitch, out_pitch, options,
        code, linear, cubic, limit, shift, ACTIVATION, JOINT, PANELS, WARPS, DEPENDENT,
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
    JOINT: tl.constexpr,
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
    live = tl.load(tokens)
    if token >= live:
        return
    matrix = pick(logits, logits_kind, token, slot - token * top_k, experts, EXPERTS, WARPS)
    slots = slot
    if JOINT:
        tl.static_assert(TOKENS == MOST_TOKENS, "a byte for each token, and no others")
        numbers = turns(logits, logits_kind, matrix, live, experts, EXPERTS, TOKENS, WARPS)
        slots = 0
        for other in tl.static_range(TOKENS):
            number = slot_in(numbers, other)
            slots = slots | tl.where(number < top_k, other * top_k + number, NO_SLOT) << (8 * other)
        if not _leads(slots, token):
            return
    _product(
        slots, token, matrix, part, x, words, scales, patches, bias, out, n, k, x_pitch, out_pitch, options, code, linear,
        cubic, limit, shift, ACTIVATION, JOINT, PANELS, WARPS, DEPENDENT,
    )  # fmt: skip
