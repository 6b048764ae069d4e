"""From router logits to slots sorted by expert: what comes before the products in both Triton schedules.

Not Nexus's router (kernels/triton/routing): these follow the peers' division of labour. One kernel makes softmax and
top-k, two more make the order, without atomics, so that it is the same every time. A slot is a token's choice number
`slot % top_k`. The slots are cut into chunks; `count_slots` counts each chunk's experts, and from all counts every
program of `place_slots` finds for itself where the slots of its chunk go.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from launching import Buffers, Launch
from peer import Shape

# Rows of logits, and warps, of a program: a warp holds a row.
TOPK_ROWS = 4
# Slots ranked at once, each against all others: the square of it is compared. One for each thread of 4 warps; with more
# threads than slots the compiler would load the slots anew for each pair instead of passing them on.
RANKED = 128
# Slots counted at once: a whole chunk, unless there are more than MOST_CHUNKS * COUNTED slots.
COUNTED = 1024
# A chunk's program reads the counts of all chunks: more of them than multiprocessors would cost more than they bring.
MOST_CHUNKS = 128
# Of place_slots, though fewer may have slots to place: all of them share in filling in blocks and padding.
LEAST_PROGRAMS = 32
# Counts that a program of place_slots reads at once: 64 registers a thread with 4 warps.
COUNTS_AT_ONCE = 8192


@triton.jit
def _key(x):
    """Integers in the order of the floats: a warp finds the largest integer in one instruction."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit(do_not_specialize=["tokens"])
def topk_softmax(
    logits,  # float32 [tokens, experts]
    weights,  # out: float32 [tokens, TOP_K]
    ids,  # out: int32 [tokens, TOP_K], the largest first; of equals the lower id
    tokens,
    experts,
    TOP_K: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    EXPERTS: tl.constexpr,
    CHOICES: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, EXPERTS)[None, :]
    inside = (row < tokens) & (column < experts)
    x = tl.load(logits + row * experts + column, mask=inside, other=0.0)
    x = tl.where(column < experts, x, float("-inf"))
    top = tl.max(x, axis=1, keep_dims=True)
    total = tl.sum(tl.exp(x - top), axis=1, keep_dims=True)

    choice = tl.arange(0, CHOICES)[None, :]
    chosen_key = tl.zeros((ROWS, CHOICES), dtype=tl.int32)
    chosen_id = tl.zeros((ROWS, CHOICES), dtype=tl.int32)
    key = tl.where(column < experts, _key(x), -(2**31))
    for pick in tl.static_range(TOP_K):
        best = tl.max(key, axis=1, keep_dims=True)
        at = tl.min(tl.where(key == best, column, EXPERTS), axis=1, keep_dims=True)
        chosen_key = tl.where(choice == pick, best, chosen_key)
        chosen_id = tl.where(choice == pick, at, chosen_id)
        key = tl.where(column == at, -(2**31), key)
    # The same operation takes a key back to the bits of its float.
    logit = (chosen_key ^ ((chosen_key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    weight = tl.where(choice < TOP_K, tl.exp(logit - top), 0.0)
    if RENORMALIZE:
        total = tl.sum(weight, axis=1, keep_dims=True)
    stored = (row < tokens) & (choice < TOP_K)
    tl.store(weights + row * TOP_K + choice, weight / total, mask=stored)
    tl.store(ids + row * TOP_K + choice, chosen_id, mask=stored)


@triton.jit(do_not_specialize=["slots", "slots_a_chunk"])
def count_slots(
    ids,  # int32 [slots]
    counts,  # out: int32 [chunks, EXPERTS]
    slots,
    slots_a_chunk,
    EXPERTS: tl.constexpr,
    COUNTED: tl.constexpr,
):
    first = tl.program_id(0) * slots_a_chunk
    end = tl.minimum(first + slots_a_chunk, slots)
    count = tl.zeros((EXPERTS,), dtype=tl.int32)
    for start in range(first, end, COUNTED):
        slot = start + tl.arange(0, COUNTED)
        there = slot < end
        count += tl.histogram(tl.load(ids + slot, mask=there, other=0), EXPERTS, mask=there)
    tl.store(counts + tl.program_id(0) * EXPERTS + tl.arange(0, EXPERTS), count)


@triton.jit(do_not_specialize=["slots", "slots_a_chunk", "chunks"])
def place_slots(
    ids,  # int32 [slots]
    counts,  # int32 [chunks, EXPERTS]
    order,  # out: int32, the slots by expert; if PADDED each expert is padded to full blocks, with `slots` for no slot
    block_experts,  # out: int32 [blocks]
    block_rows,  # out: int32 [blocks, 2], a block's first place in `order` and its expert's end there; None if PADDED
    block_count,  # out: int32 [1]
    slots,
    slots_a_chunk,
    chunks,
    PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    EXPERTS: tl.constexpr,
    RANKED: tl.constexpr,
    CHUNKS_AT_ONCE: tl.constexpr,
):
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    column = tl.arange(0, EXPERTS)
    first = program * slots_a_chunk
    end = tl.minimum(first + slots_a_chunk, slots)
    in_step = tl.arange(0, RANKED)
    # Asked for before the counts; they do not depend on each other.
    expert = tl.load(ids + first + in_step, mask=first + in_step < end, other=-1)

    count = tl.zeros((EXPERTS,), dtype=tl.int32)
    before = tl.zeros((EXPERTS,), dtype=tl.int32)
    for start in range(0, chunks, CHUNKS_AT_ONCE):
        chunk = start + tl.arange(0, CHUNKS_AT_ONCE)[:, None]
        part = tl.load(counts + chunk * EXPERTS + column[None, :], mask=chunk < chunks, other=0)
        count += tl.sum(part, axis=0)
        before += tl.sum(tl.where(chunk < program, part, 0), axis=0)
    blocks = tl.cdiv(count, BLOCK_M)
    room = blocks * BLOCK_M if PADDED else count
    offset = tl.cumsum(room, axis=0) - room

    place = offset + before
    # Summed over the first dimension, which threads have to themselves.
    earlier = in_step[:, None] < in_step[None, :]
    for start in range(first, end, RANKED):
        slot = start + in_step
        following = tl.load(ids + slot + RANKED, mask=slot + RANKED < end, other=-1)
        rank = tl.sum(((expert[:, None] == expert[None, :]) & earlier).to(tl.int32), axis=0)
        there = slot < end
        chosen = tl.maximum(expert, 0)
        tl.store(order + tl.gather(place, chosen, 0) + rank, slot, mask=there)
        place += tl.histogram(chosen, EXPERTS, mask=there)
        expert = following

    first_block = tl.cumsum(blocks, axis=0) - blocks
    for block in range(program, tl.max(blocks, axis=0), programs):
        at = first_block + block
        tl.store(block_experts + at, column, mask=block < blocks)
        if not PADDED:
            tl.store(block_rows + 2 * at, offset + block * BLOCK_M, mask=block < blocks)
            tl.store(block_rows + 2 * at + 1, offset + count, mask=block < blocks)
    if PADDED:
        for pad in range(program, BLOCK_M, programs):
            at = offset + count + pad
            tl.store(order + at, tl.zeros_like(at) + slots, mask=pad < room - count)
    if program == 0:
        tl.store(block_count, tl.sum(blocks, axis=0))


def most_blocks(shape: Shape, tokens: int, block_m: int) -> int:
    """Blocks that any routing of so many tokens can make: every expert that is chosen leaves at most one incomplete."""
    slots = tokens * shape.top_k
    return (slots + min(slots, shape.experts) * (block_m - 1)) // block_m


def topk_buffers(shape: Shape, tokens: int) -> Buffers:
    return {
        "weights": ((tokens, shape.top_k), torch.float32),
        "ids": ((tokens, shape.top_k), torch.int32),
    }


def order_buffers(shape: Shape, tokens: int, block_m: int) -> Buffers:
    blocks = most_blocks(shape, tokens, block_m)
    _, chunks = _chunks(tokens * shape.top_k)
    return {
        "counts": ((chunks, triton.next_power_of_2(shape.experts)), torch.int32),
        "order": ((blocks * block_m,), torch.int32),
        "block_experts": ((blocks,), torch.int32),
        "block_rows": ((blocks, 2), torch.int32),
        "block_count": ((1,), torch.int32),
    }


def topk_launch(shape: Shape, tokens: int, buffers: dict[str, Any]) -> Launch:
    return Launch(
        topk_softmax,
        (triton.cdiv(tokens, TOPK_ROWS),),
        (buffers["logits"], buffers["weights"], buffers["ids"], tokens, shape.experts),
        {
            "TOP_K": shape.top_k,
            "RENORMALIZE": shape.renormalize,
            "EXPERTS": triton.next_power_of_2(shape.experts),
            "CHOICES": triton.next_power_of_2(shape.top_k),
            "ROWS": TOPK_ROWS,
            "num_warps": TOPK_ROWS,
        },
    )


def order_launches(shape: Shape, tokens: int, block_m: int, padded: bool, buffers: dict[str, Any]) -> list[Launch]:
    slots = tokens * shape.top_k
    slots_a_chunk, chunks = _chunks(slots)
    experts = triton.next_power_of_2(shape.experts)
    count = Launch(
        count_slots,
        (chunks,),
        (buffers["ids"], buffers["counts"], slots, slots_a_chunk),
        {"EXPERTS": experts, "COUNTED": COUNTED, "num_warps": 4},
    )
    place = Launch(
        place_slots,
        (max(chunks, LEAST_PROGRAMS),),
        (
            buffers["ids"],
            buffers["counts"],
            buffers["order"],
            buffers["block_experts"],
            None if padded else buffers["block_rows"],
            buffers["block_count"],
            slots,
            slots_a_chunk,
            chunks,
        ),
        {
            "PADDED": padded,
            "BLOCK_M": block_m,
            "EXPERTS": experts,
            "RANKED": RANKED,
            "CHUNKS_AT_ONCE": min(MOST_CHUNKS, max(1, COUNTS_AT_ONCE // experts)),
            "num_warps": 4,
        },
    )
    return [count, place]


def _chunks(slots: int) -> tuple[int, int]:
    """(slots of a chunk, chunks)"""
    slots_a_chunk = RANKED * triton.cdiv(slots, RANKED * MOST_CHUNKS)
    return slots_a_chunk, triton.cdiv(slots, slots_a_chunk)
