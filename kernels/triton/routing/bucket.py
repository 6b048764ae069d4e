"""Who chose whom to rows sorted by expert, and to the work lists of tiles: one launch, nothing on the host.

Every program counts the sets of tokens that route.py left, all of them: so much for offsets, without waiting for
another program. Then `fill_programs` programs each give the slots of some tokens their rows: an expert's first row, the
tokens before that chose it, and the bits below the token's own in its word. The others each write a share of one work
list. Ranks are counted and not handed out, so the order is that of the slots, whatever runs when.

A work list is what grouped.py reads: for every tile its expert, first row and rows. Which list an expert is on is its
lane and, within the lane, the class of its row count. An expert is in one class, and its tiles are neighbours, so that
its weights are read once.

An expert with one tile waits for its weights from memory, one with many finds them in L2 and waits for the tensor cores.
So that both are in flight at any time, experts with many tiles, the busy ones, stand in front of the list, and how many
tiles these are is written down: products on tiles of 128 rows go through both parts at once (grouped.py, mixed). Lower
tiles are gone through as they are listed.

A token's experts are distinct, as a router's are. With so little to do time is latency: what does not depend on the
counts is asked for before them, and `lane_of`, `lists` and `tokens`, which no kernel writes, before the kernel in front is
done (overlap.py; an early start saved 0.8 of 6.6 us for 512 tokens on an H200). More warps were slower there, by 1.6 us with
eight: what is gained in loads is lost in reductions across warps.

Where nothing comes after it this kernel brings counts and fault to the host, too (tidy.py is for where something does: a kernel is
not over before the host's memory has what it wrote there).
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice

from overlap import begin

from .tidy import COUNTS_HOST, FAULT_HOST

# Words of a work list's entry in `lists`, part of the ABI: rows of a tile; most rows of an expert of this class (not read
# in a lane's last class); the list's first tile in `tiles`; most tiles of a group.
LIST_WORDS = 4
# Words of a tile: matrix, first row, rows, and of its group: its place in it, and from bit 16 on how many tiles that has.
# A group's tiles are of one expert and go through the columns together (grouped.py, find_tile): an expert's tiles are divided as
# evenly as can be into as few groups as there must be.
TILE_WORDS = 4
GROUP_SHIFT = tl.constexpr(16)
# Words of a list's counts: tiles, and the first so many of them are of busy experts; from BEGUN on, pieces that have been begun of
# two products, none as yet: they count them themselves (experts/pieces.py).
COUNT_WORDS = tl.constexpr(4)
BEGUN = tl.constexpr(2)
MOST_SLOTS = 32 * 32
# An expert is busy if it has more tiles than the mean, over the experts that have any. (Those with more than 3 / 2 of the mean instead:
# up to 2 % longer. Those with more than one tile: within 1 %, but 2 % longer for 2048 tokens of large and of medium.) Busy ones are looked
# for only where loads are skewed: experts with more than 3 / 2 of the mean must have an eighth of all tiles. Where less is enough for it
# to be done, even loads take up to 3.6 % longer. All on an H100, whole steps.
SKEWED = tl.constexpr(3)
SKEWED_BY = tl.constexpr(2)
SKEWED_SHARE = tl.constexpr(8)
# And only on lists of tiles this high; products on such tiles mix (variants/products.py), those on lower ones go through theirs
# as they are listed. Low tiles are for experts that have few rows, all of which wait for memory, or whose weights lie in the L2;
# and for float32 and PTX, where it has not been tried. With tiles of 64 rows and rows of 512 elements steps took 4 to 6 %
# longer, by inference for what it takes to mix.
BUSY_HEIGHT = tl.constexpr(128)


@triton.jit
def _bits_below(n):
    """A word with the lowest n bits set; none below 0, all from 32 on."""
    return tl.where(n >= 32, -1, (1 << tl.minimum(tl.maximum(n, 0), 31)) - 1)


@triton.jit
def _slots(ids, sets, word, most_slots, top_k, experts, EXPERTS: tl.constexpr, SLOTS: tl.constexpr):
    """Of a word's slots the experts, and how many of the word's earlier tokens chose the same; expert -1 if none."""
    in_word = tl.arange(0, SLOTS)
    token = in_word // top_k
    slot = word * 32 * top_k + in_word
    expert = tl.load(ids + slot, mask=(token < 32) & (slot < most_slots), other=-1)
    # Past the last token a buffer may hold anything.
    known = (expert >= 0) & (expert < experts)
    chosen_by = tl.load(sets + word * EXPERTS + expert, mask=known, other=0)
    return tl.where(known, expert, -1), libdevice.popc(chosen_by & _bits_below(token))


@triton.jit
def _total_used_most(total, used, most, other_total, other_used, other_most):
    return total + other_total, used + other_used, tl.maximum(most, other_most)


@triton.jit
def _busy_first(pieces, at, total, used):
    """Places on a list on which experts stood by number, with busy ones in front, and how many tiles these have."""
    of_busy = tl.where(pieces * used > total, pieces, 0)
    before = tl.cumsum(of_busy, axis=0) - of_busy
    of_skewed = tl.where(SKEWED_BY * pieces * used > SKEWED * total, pieces, 0)
    busy = tl.where(SKEWED_SHARE * tl.sum(of_skewed, axis=0) >= total, tl.sum(of_busy, axis=0), 0)
    placed = tl.where(of_busy > 0, before, busy + at - before)
    return tl.where(busy > 0, placed, at), busy


@triton.jit
def _list_tiles(
    lists, told, tiles, tile_counts, offset, kept, lane, column, inside, program, programs, lanes, classes
):
    """This program's share of one list's tiles: program i has list i % lists, of every expert tiles i // lists and on.

    `told`: of what is told of that list rows of a tile, its first tile, most tiles of a group.
    """
    height, list_at, most_together = told
    number = lanes * classes
    this = program % number
    on = inside & (lane == this // classes)
    for c in range(classes - 1):
        # The class is the first with room for so many rows.
        fits = kept <= tl.load(lists + 4 * (this - this % classes + c) + 1)
        on = on & tl.where(c < this % classes, ~fits, (c > this % classes) | fits)
    pieces = tl.where(on, tl.cdiv(kept, height), 0)
    at = tl.cumsum(pieces, axis=0) - pieces
    total, used, most = tl.reduce((pieces, (pieces > 0).to(tl.int32), pieces), 0, _total_used_most)
    busy = total * 0
    if (height >= BUSY_HEIGHT) & (SKEWED_BY * most * used > SKEWED * total):
        at, busy = _busy_first(pieces, at, total, used)
    if program < number:
        word = tl.arange(0, COUNT_WORDS)
        tl.store(tile_counts + COUNT_WORDS * this + word, tl.where(word == 0, total, tl.where(word == 1, busy, 0)))
    at += list_at
    group = tl.maximum(pieces, 1)
    if most > most_together:
        group = tl.cdiv(group, tl.cdiv(group, most_together))
    part = tl.arange(0, 4)[None, :]
    for tile in range(program // number, most, tl.cdiv(programs - this, number)):
        done = tile * height
        words = tl.where(part == 0, column[:, None], (offset + done)[:, None])
        words = tl.where(part == 2, tl.minimum(kept - done, height)[:, None], words)
        place = tile % group
        together = place | (tl.minimum(group, pieces - tile + place) << GROUP_SHIFT)
        words = tl.where(part == 3, together[:, None], words)
        tl.store(tiles + (at + tile)[:, None] * 4 + part, words, mask=(tile < pieces)[:, None])


@triton.jit
def bucket(
    ids,  # int32 [most_tokens, top_k]; -1 belongs to no expert
    sets,  # int32 [ceil(most_tokens / 32), EXPERTS]: see route.py
    tokens,  # int32 [1]
    lane_of,  # int32 [experts]
    lists,  # int32 [lanes, classes, LIST_WORDS]
    counts,  # out: int32 [experts], before any limit
    offsets,  # out: int32 [experts + 1]
    order,  # out: int32 [slots]: slot of each row
    inverse,  # out: int32 [slots]: row of each slot, -1 if dropped
    tiles,  # out: int32 [*, TILE_WORDS]
    tile_counts,  # out: int32 [lanes, classes, COUNT_WORDS]
    capacity_factor,  # float64: an expert has at most ceil(capacity_factor * slots / experts) rows; infinity: no limit
    experts,
    top_k,
    most_tokens,
    lanes,
    classes,
    fill_programs,
    # As for tidy.py, but that counts are this kernel's own and nothing is to be cleared.
    tidy_counts,
    tidy_out,
    tidy_counts_host,
    tidy_fault,
    tidy_fault_host,
    tidy_experts,
    tidy_options,
    EXPERTS: tl.constexpr,
    SLOTS: tl.constexpr,
    WORDS_A_STEP: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """The first fill_programs programs fill; of the rest, at least one for each list, program i writes of list i % lists."""
    program = tl.program_id(0)
    fills = program < fill_programs
    words = tl.cdiv(most_tokens, 32)
    words_a_program = tl.cdiv(words, fill_programs)
    first_word = program * words_a_program
    column = tl.arange(0, EXPERTS)
    inside = column < experts
    lane = tl.load(lane_of + column, mask=inside & (program >= fill_programs), other=0)
    # Of this program's list, should it have one.
    told_at = lists + 4 * (tl.maximum(program - fill_programs, 0) % (lanes * classes))
    told = (tl.load(told_at), tl.load(told_at + 2), tl.load(told_at + 3))
    live_tokens = tl.load(tokens)
    # As the host computes it, operation by operation.
    most = tl.ceil(capacity_factor * live_tokens.to(tl.float64) * top_k.to(tl.float64) / experts.to(tl.float64))
    limit = tl.minimum(most, 2147483647.0).to(tl.int32)
    begin(DEPENDENT)
    expert, rank = _slots(ids, sets, first_word, most_tokens * top_k, top_k, experts, EXPERTS, SLOTS)

    # Over the buffer's words, not over those in use: the loads do not wait for the number of tokens.
    count = tl.zeros((WORDS_A_STEP, EXPERTS), dtype=tl.int32)
    before = tl.zeros((WORDS_A_STEP, EXPERTS), dtype=tl.int32)
    for start in range(0, words, WORDS_A_STEP):
        word = start + tl.arange(0, WORDS_A_STEP)
        chosen_by = tl.load(sets + word[:, None] * EXPERTS + column[None, :], mask=(word < words)[:, None], other=0)
        here = libdevice.popc(chosen_by & _bits_below(live_tokens - 32 * word)[:, None])
        count += here
        before += tl.where((word < first_word)[:, None], here, 0)
    count = tl.sum(count, axis=0)

    kept = tl.minimum(count, limit)
    offset = tl.cumsum(kept, axis=0) - kept
    if fills:
        earlier = tl.sum(before, axis=0)
        in_word = tl.arange(0, SLOTS)
        for word in range(first_word, tl.minimum(first_word + words_a_program, tl.cdiv(live_tokens, 32))):
            slot = word * 32 * top_k + in_word
            there = (in_word < 32 * top_k) & (slot < live_tokens * top_k)
            chosen = tl.maximum(expert, 0)
            rank += tl.gather(earlier, chosen, 0)
            row = tl.gather(offset, chosen, 0) + rank
            fits = there & (expert >= 0) & (rank < limit)
            tl.store(inverse + slot, tl.where(fits, row, -1), mask=there)
            tl.store(order + row, slot, mask=fits)
            # Should this word not be full, it is the last.
            earlier += libdevice.popc(tl.load(sets + word * EXPERTS + column))
            expert, rank = _slots(ids, sets, word + 1, most_tokens * top_k, top_k, experts, EXPERTS, SLOTS)
    else:
        program -= fill_programs
        if program == 0:
            tl.store(counts + column, count, mask=inside)
            tl.store(tidy_counts_host + column, count, mask=inside & ((tidy_options & COUNTS_HOST) != 0))
            if (tidy_options & FAULT_HOST) != 0:
                tl.store(tidy_fault_host, tl.load(tidy_fault))
            tl.store(offsets + column, offset, mask=inside)
            tl.store(offsets + experts, tl.sum(kept, axis=0))
        _list_tiles(
            lists, told, tiles, tile_counts, offset, kept, lane, column, inside, program,
            tl.num_programs(0) - fill_programs, lanes, classes,
        )  # fmt: skip
