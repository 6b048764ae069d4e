"""The second of decode's products on weights of 12 bits: sums over a token's choices, as decode.py's decode_second, by tensor cores.

Either for each token by itself, or for all together. The first has more programs and goes over choices' panels without gaps between experts,
the second reads and expands an expert that tokens share once. Which takes less time the host says (operators/decode-joint.ts).
decode_packed.py says what both do with a panel.
"""

import triton
import triton.language as tl

from l2 import read_once
from overlap import wait

from .combine import WEIGHTS, add_shared_and_residual
from .decode import MOST_CHOICES, SECOND_BIAS, SECOND_READ_ONCE, choice_at, choices_in_order, tidy_from_last
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
from .grouped import PANEL
from .packed_words import GROUP_ROWS

# Above all experts: none.
NO_EXPERT = tl.constexpr(2**31 - 1)


@triton.jit
def _put(
    total, token, rows, inside, bias, ids, weights, shared, shared_scale, residual, out, width, n, row_pitch, top_k, options
):  # fmt: skip
    """Stores what lanes have summed of their tokens' outputs, with all that is added to it, where `inside`."""
    if (options & SECOND_BIAS) != 0:
        for choice in range(top_k):
            slot = token * top_k + choice
            matrix = tl.load(ids + slot)
            taken = matrix >= 0
            weight = tl.load(weights + slot, mask=taken & ((options & WEIGHTS) != 0), other=1.0)
            total += weight * tl.load(bias + matrix * n + rows, mask=taken & inside, other=0.0)
    total = add_shared_and_residual(total, token, rows, inside, shared, shared_scale, residual, row_pitch, options)
    tl.store(out + token.to(tl.int64) * width + rows, total.to(out.dtype.element_ty), mask=inside)


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
    word_stride, patch_stride = strides(n)
    # Panels of all choices one after the other, so that warps have as many of them.
    for begin in tl.range(this_warp(), top_k * panels, WARPS * PANELS, num_stages=1):
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
            group_words, group_patches = place_of_group(words, patches, matrix, part, n, k)
            lane_words = group_words + panel * word_stride + lane * SIXTEENS
            x_words = lane_row(x, slot, x_pitch, lane) + panel * (PANEL // 2)
            asked += (ask_panel(lane_words, group_patches + panel * patch_stride, x_words, there, there, lane),)
        for ahead in tl.static_range(PANELS):
            even, _, odd, _ = panel_sums(asked[ahead], lane)
            even_factor, odd_factor = factors[ahead]
            evens += even * even_factor
            odds += odd * odd_factor
    first = over_warps(evens, WARPS)
    second = over_warps(odds, WARPS)
    # A row to each of 16 lanes: [pair, 4 lanes that have the same], of which the first two take the pair's rows.
    within = tl.arange(0, 32) % 4
    total = tl.where(within == 0, first, second)
    rows = part * GROUP_ROWS + tl.arange(0, 32) // 4 * 2 + within
    inside = (within < 2) & (rows < width)
    _put(total, token, rows, inside, bias, ids, weights, shared, shared_scale, residual, out, width, n, row_pitch, top_k, options)


@triton.jit
def _next_expert(choices, expert):
    """The lowest that a token chose of those above `expert`; NO_EXPERT if there is none."""
    lowest = tl.where(choices[0] > expert, choices[0], NO_EXPERT)
    for token in tl.static_range(1, MOST_TOKENS):
        lowest = tl.minimum(lowest, tl.where(choices[token] > expert, choices[token], NO_EXPERT))
    return tl.min(lowest, axis=0)


@triton.jit
def _first_panel(expert, panels, WARPS: tl.constexpr):
    """A warp's first panel of an expert, whose panels are dealt as if those of all experts lay one after the other."""
    return (this_warp() + tl.where(expert == NO_EXPERT, 0, expert) * (WARPS - panels % WARPS)) % WARPS


@triton.jit
def _there(choices, expert, panel, panels, WARPS: tl.constexpr):
    """(expert, panel): these, or if there is no such panel the warp's first of the next expert that has any for it."""
    while (panel >= panels) & (expert != NO_EXPERT):
        expert = _next_expert(choices, expert)
        panel = _first_panel(expert, panels, WARPS)
    return expert, panel


@triton.jit
def decode_packed_second_joint(
    x,  # and so on: as for decode_packed_second
    words,
    scales,
    patches,
    bias,
    ids,
    weights,
    shared,
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
    """Program i: outputs 16 i and on of all tokens, summed over the choices of each in order of their ids.

    Which of an expert's panels a warp takes is told by the expert alone: so a token's sum is a function of its own choices.
    """
    tidy_from_last(tidy_counts, tidy_out, tidy_counts_host, tidy_fault, tidy_fault_host, tidy_experts, tidy_options)
    wait(DEPENDENT)
    live = tl.load(tokens)
    if live <= 0:
        return
    part = tl.program_id(0)
    lane = tl.arange(0, 32 * WARPS) % 32
    pairs = part * GROUP_ROWS + lane // 4 * 2
    # A lane's token of the operand, and the first of the two that it has sums of: the other half of the columns has the same.
    token = lane // 4 % MOST_TOKENS
    summed = lane % 2 * 2
    choices = choices_of(ids, live, top_k)
    evens = lane * 0.0
    next_evens = lane * 0.0
    odds = lane * 0.0
    next_odds = lane * 0.0
    read_once(options & SECOND_READ_ONCE)
    panels = k // PANEL
    word_stride, patch_stride = strides(n)
    expert = _next_expert(choices, -1)
    expert, panel = _there(choices, expert, _first_panel(expert, panels, WARPS), panels, WARPS)
    while expert != NO_EXPERT:
        asked = ()
        factors = ()
        for _ in tl.static_range(PANELS):
            there = expert != NO_EXPERT
            matrix = tl.where(there, expert, 0)
            slots = slots_of(expert, choices, top_k)
            slot = slot_in(slots, summed)
            next_slot = slot_in(slots, summed + 1)
            weighted = there & ((options & WEIGHTS) != 0)
            weight = tl.load(weights + slot, mask=weighted & (slot != NO_SLOT), other=1.0)
            next_weight = tl.load(weights + next_slot, mask=weighted & (next_slot != NO_SLOT), other=1.0)
            row = matrix * n + pairs
            scale = tl.load(scales + row)
            next_scale = tl.load(scales + row + 1)
            factors += ((scale, next_scale, weight, next_weight),)
            group_words, group_patches = place_of_group(words, patches, matrix, part, n, k)
            lane_words = group_words + panel * word_stride + lane * SIXTEENS
            slot = slot_in(slots, token)
            x_words = lane_row(x, slot, x_pitch, lane) + panel * (PANEL // 2)
            asked += (ask_panel(lane_words, group_patches + panel * patch_stride, x_words, there, slot != NO_SLOT, lane),)
            expert, panel = _there(choices, expert, panel + WARPS, panels, WARPS)
        for ahead in tl.static_range(PANELS):
            even, next_even, odd, next_odd = panel_sums(asked[ahead], lane)
            scale, next_scale, weight, next_weight = factors[ahead]
            evens += even * (scale * weight)
            next_evens += next_even * (scale * next_weight)
            odds += odd * (next_scale * weight)
            next_odds += next_odd * (next_scale * next_weight)
    evens = over_warps(evens, WARPS)
    next_evens = over_warps(next_evens, WARPS)
    odds = over_warps(odds, WARPS)
    next_odds = over_warps(next_odds, WARPS)
    # Of the four lanes of a pair of rows two take the first row, for two tokens each, and two the second.
    lanes = tl.arange(0, 32)
    first_row = lanes % 4 < 2
    rows = part * GROUP_ROWS + lanes // 4 * 2 + lanes % 4 // 2
    first_token = lanes % 2 * 2
    for nth in tl.static_range(2):
        total = tl.where(first_row, next_evens, next_odds) if nth else tl.where(first_row, evens, odds)
        inside = (first_token + nth < live) & (rows < width)
        # Of tokens that there are not nothing is stored; they read what the last one does.
        of = tl.minimum(first_token + nth, live - 1)
        _put(total, of, rows, inside, bias, ids, weights, shared, shared_scale, residual, out, width, n, row_pitch, top_k, options)
