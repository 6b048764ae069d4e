"""Who chose whom, for ids that the host wrote: the sets that route.py leaves, without routing.

bucket.py reads the sets and the ids. Where ids come from route.py its sets come with them; where they were handed in,
this kernel makes the sets. They are empty when it starts, as for route.py, and filled by integer atomics, whose
order does not show. Neither checks that a token's experts are distinct: an expert met twice has one bit.
"""

import triton
import triton.language as tl

from .route import WORD_TOKENS


@triton.jit
def mark(
    ids,  # int32 [most_tokens, top_k]; an id below 0, or from `experts` on, belongs to no expert
    tokens,  # int32 [1]
    sets,  # in and out: int32 [ceil(most_tokens / 32), padded_experts]: empty; bit t of a word is token 32 * i + t
    experts,
    padded_experts,  # that of the bucket kernel
    top_k,
    BLOCK: tl.constexpr,
):
    """Program i: slots BLOCK * i and on."""
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = slot < tl.load(tokens) * top_k
    expert = tl.load(ids + slot, mask=live, other=-1)
    token = slot // top_k
    word = sets + (token // WORD_TOKENS) * padded_experts + expert
    chosen = live & (expert >= 0) & (expert < experts)
    tl.atomic_or(word, tl.zeros_like(expert) + (1 << (token % WORD_TOKENS)), mask=chosen, sem="relaxed")
