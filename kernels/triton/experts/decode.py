"""Experts of very few tokens (1 to 4): two matrix-vector products that stream weights at memory speed.

No tensor cores, no buckets: with so few tokens hardly an expert has two of them, so each slot
(token, choice) reads its expert's weights for itself. Slots are the fastest axis of the grid: those that share
an expert ask for the same rows at about the same time, and all but the first find them in L2.
Ids straight from the router are all these kernels need. The second one goes over a token's
choices and so does the aggregation as well: an expert's row never goes to memory, and
the weighted sum is in float32 from the products on.

It takes the choices in ascending order of their experts' ids, dropped slots first. Tokens that share an expert then ask
for its weights at about the same time, as the first product's slots do: 241 us became 190 on an H100 (256 experts, top 8,
7168 x 2048, 4 tokens, Zipf 1.5). So a token's sum is in the order of ids, biases after it in that of choices: either is a
function of its own choices alone. Each program ranks the choices for itself, which takes a single token no longer.

Routed along. Where a token's choices can be told from its logits alone the first kernel does the routing as well
(decode_routing): its first program is what `route` and `tidy` would be, and as that one takes as long as a program takes to find out its
own expert, each of the others does so for itself and waits for nobody. Ids and weights are there for the second kernel. A step of
one token is one kernel shorter by that.

A program owns a few weight rows and the whole of k, a piece of every panel (grouped.py). Partial sums stay in the lanes
until the end: one reduction across the block per output, not one per expert.

With so little arithmetic, time is bytes in flight, and a good part of the energy is instructions. The first kernel loads weights
into registers, eight loads a thread at once, and leaves it to other warps to ask for more while it multiplies: nothing goes
through shared memory but x. The second, which has fewer programs, is one software-pipelined loop that copies weights to
shared memory several steps ahead. (Prefetching its weights to L2 was tried on an H200 and gained nothing over this.) What the L2
does with weights the host says (l2.py). Both kernels read words of two elements, which become float32 by an instruction each. A
step of one token takes 5 to 12 % less energy so than it did with both kernels pipelined and elements read as such, and up to 8 %
less time (H100).

Layout and numbers as in grouped.py and activation.py.
"""

import triton
import triton.language as tl

from l2 import read_once
from overlap import release, wait
from routing import route
from routing.route import pick, route_few
from routing.tidy import BLOCK as TIDY_BLOCK, tidy_up

from .activation import activate, join_gate
from .combine import OPTIONS as COMBINE_OPTIONS, WEIGHTS, add_shared_and_residual
from .grouped import BIAS, INPUT_SCALE, OPTIONS as GROUPED_OPTIONS, PANEL, READ_ONCE

# Bits of the first kernel's `options`, as in grouped.py, and of decode_second's: those of combine that it knows, and two of its own.
FIRST_OPTIONS = {name: GROUPED_OPTIONS[name] for name in ("bias", "input_scale", "read_once")}
SECOND_OPTIONS = {
    **{name: COMBINE_OPTIONS[name] for name in ("weights", "shared", "shared_scale", "residual")},
    **{"bias": 16, "read_once": 32},
}
SECOND_BIAS = tl.constexpr(SECOND_OPTIONS["bias"])
SECOND_READ_ONCE = tl.constexpr(SECOND_OPTIONS["read_once"])
# A power of two.
MOST_CHOICES = tl.constexpr(route.MOST_CHOICES)
CHOICE_BITS = tl.constexpr(route.MOST_CHOICES.bit_length() - 1)
# Below every key.
LOWEST = tl.constexpr(-(2**31))


@triton.jit
def _words(pointer):
    """A pointer to elements as one to words of 32 bits, which hold one or two of them."""
    return pointer.to(tl.pointer_type(tl.int32))


@triton.jit
def _places(rows, words, n, IN_WORD: tl.constexpr):
    """Where these words of these rows are in a matrix. It has fewer than 2^31 weights, and 32 bits for places in it spare the second
    kernel's small tiles up to a fifth of their registers."""
    panel: tl.constexpr = PANEL // IN_WORD
    return (words // panel * n * panel + words % panel)[None, :] + rows[:, None] * panel


@triton.jit
def _element(words, nth: tl.constexpr, ELEMENT: tl.constexpr):
    """The first or second element of words, in float32."""
    if ELEMENT == tl.bfloat16:
        # An instruction each. Converted from bfloat16 two elements take three.
        return (words & -65536 if nth else words << 16).to(tl.float32, bitcast=True)
    elif ELEMENT == tl.float16:
        return (words >> 16 * nth).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        return words.to(tl.float32, bitcast=True)


@triton.jit
def _product(
    slot, token, matrix, part, x, w, bias, out, input_scale, n, k, x_pitch, out_pitch, options, code, linear, cubic, limit, shift,
    GATED: tl.constexpr, ACTIVATION: tl.constexpr, ROWS: tl.constexpr, BLOCK_K: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Of a slot's row of `out` what ROWS weight rows from ROWS * part on give."""
    ELEMENT: tl.constexpr = w.dtype.element_ty
    IN_WORD: tl.constexpr = 32 // ELEMENT.primitive_bitwidth
    BLOCK: tl.constexpr = BLOCK_K // IN_WORD
    rows = part * ROWS + tl.arange(0, ROWS)
    ks = tl.arange(0, BLOCK)
    x_row = _words(x + token.to(tl.int64) * x_pitch)
    places = _places(rows, ks, n, IN_WORD)
    matrix_words = _words(w) + matrix.to(tl.int64) * n * (k // IN_WORD)
    words = k // IN_WORD
    partial = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    read_once(options & READ_ONCE)
    for start in tl.range(0, words, BLOCK, num_stages=1):
        word = start + ks
        inside = word < words
        a = tl.load(x_row + word, mask=inside, other=0)
        b = tl.load(matrix_words + start * n + places, mask=inside[None, :], other=0, eviction_policy="evict_first")
        for nth in tl.static_range(IN_WORD):
            partial += _element(b, nth, ELEMENT) * _element(a, nth, ELEMENT)[None, :]
    release(DEPENDENT)
    product = tl.sum(partial, axis=1)
    if (options & INPUT_SCALE) != 0:
        product = product * tl.load(input_scale + slot)
    if (options & BIAS) != 0:
        product = product + tl.load(bias + matrix * n + rows)
    out_row = out + slot.to(tl.int64) * out_pitch
    if GATED:
        gate, value = product.reshape(ROWS // 2, 2).split()
        result = join_gate(gate, value, code, linear, cubic, limit, shift, ACTIVATION)
        columns = part * (ROWS // 2) + tl.arange(0, ROWS // 2)
        tl.store(out_row + columns, result.to(out.dtype.element_ty))
    else:
        result = activate(product, code, linear, cubic, ACTIVATION)
        tl.store(out_row + rows, result.to(out.dtype.element_ty))


@triton.jit
def decode_first(
    x,  # [tokens, x_pitch]
    w,  # in panels (grouped.py)
    bias,  # float32 [matrices, n], if BIAS
    out,  # [slots, out_pitch], rows in slot order
    ids,  # int32 [slots]: negative for a dropped slot, whose row is not written
    input_scale,  # float32 [slots], if INPUT_SCALE
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
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Program (slot, i): ROWS weight rows from ROWS * i on, against the slot's token."""
    wait(DEPENDENT)
    slot = tl.program_id(0)
    token = slot // top_k
    # Both loads before either is needed.
    matrix = tl.load(ids + slot)
    if (token >= tl.load(tokens)) | (matrix < 0):
        return
    _product(
        slot, token, matrix, tl.program_id(1), x, w, bias, out, input_scale, n, k, x_pitch, out_pitch, options, code, linear, cubic,
        limit, shift, GATED, ACTIVATION, ROWS, BLOCK_K, DEPENDENT,
    )  # fmt: skip


@triton.jit
def decode_routing(
    x,  # as for decode_first, and so on
    w,
    bias,
    out,
    ids,  # out: int32 [slots], as of `route`
    tokens,
    logits,  # [most_tokens, experts], of a type by
    logits_kind,  # route.LOGITS
    weights,  # out: float32 [slots], as of `route`
    counts,  # out: int32 [experts]: tokens of each expert, whatever was there
    counts_host,  # out: the same in host memory, or 0
    fault,  # int32 [1]: lowered to the first row without finite weights
    fault_host,  # out: the same in host memory, never 0
    scoring,  # and so on: as for `route`
    route_options,
    scale,
    experts,
    most_tokens,  # no more than TOKENS: what buffers have room for
    n,
    k,
    x_pitch,
    out_pitch,
    top_k,
    options,  # without INPUT_SCALE
    code,
    linear,
    cubic,
    limit,
    shift,
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EXPERTS: tl.constexpr,
    TOKENS: tl.constexpr,
    WARPS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Program (slot, i): as program (slot, i - 1) of decode_first; (0, 0): routing of all tokens."""
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
    no_scale = weights
    _product(
        slot, token, matrix, part, x, w, bias, out, no_scale, n, k, x_pitch, out_pitch, options, code, linear, cubic, limit, shift,
        GATED, ACTIVATION, ROWS, BLOCK_K, DEPENDENT,
    )  # fmt: skip


@triton.jit
def tidy_from_last(counts, out, counts_host, fault, fault_host, experts, options):
    """`tidy_up` by programs of a grid of two axes, from the last ones on, some of which have nothing else to do."""
    programs = tl.num_programs(0) * tl.num_programs(1)
    number = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tidy_up(programs - 1 - number, programs, counts, out, counts_host, fault, fault_host, experts, options, TIDY_BLOCK)


@triton.jit
def choices_in_order(ids, token, top_k):
    """(keys of a token's choices, the rank of each, which there are): in order of ids, and of equal ones (dropped slots) in that of choices."""
    choices = tl.arange(0, MOST_CHOICES)
    known = choices < top_k
    keys = tl.load(ids + token * top_k + choices, mask=known, other=0) * MOST_CHOICES + choices
    # A choice's rank is how many keys come before its own.
    rank = tl.zeros((MOST_CHOICES,), dtype=tl.int32)
    for other in range(top_k):
        rank += (tl.load(ids + token * top_k + other) * MOST_CHOICES + other < keys).to(tl.int32)
    return keys, rank, known


@triton.jit
def choice_at(turn, keys, rank, known, token, top_k):
    """(expert, negative if dropped; slot) of the choice that has a rank; a negative expert if none has it."""
    key = tl.max(tl.where((rank == turn) & known, keys, LOWEST), axis=0)
    return key >> CHOICE_BITS, token * top_k + (key & (MOST_CHOICES - 1))


@triton.jit
def decode_second(
    x,  # [slots, x_pitch]: what decode_first wrote
    w,  # in panels (grouped.py)
    bias,  # float32 [matrices, n], if SECOND_BIAS
    ids,  # int32 [slots]: negative for a dropped slot
    weights,  # float32 [slots], if WEIGHTS
    shared,  # [tokens, row_pitch], if SHARED
    shared_scale,  # float32 [tokens], if SHARED_SCALE
    residual,  # [tokens, row_pitch], if RESIDUAL
    out,  # [tokens, width]
    tokens,  # int32 [1]
    width,
    n,
    k,
    x_pitch,
    row_pitch,  # of shared and residual
    top_k,
    options,
    tidy_counts,  # what is left to do of routing: routing/tidy.py; all 0: nothing
    tidy_out,
    tidy_counts_host,
    tidy_fault,
    tidy_fault_host,
    tidy_experts,
    tidy_options,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Program (token, i): ROWS outputs from ROWS * i on, summed over the token's choices in order of their ids."""
    tidy_from_last(tidy_counts, tidy_out, tidy_counts_host, tidy_fault, tidy_fault_host, tidy_experts, tidy_options)
    # Choices may be the kernel's in front. Where they are known before that, looking them up ahead gained nothing.
    wait(DEPENDENT)
    token = tl.program_id(0)
    if token >= tl.load(tokens):
        return
    ELEMENT: tl.constexpr = w.dtype.element_ty
    IN_WORD: tl.constexpr = 32 // ELEMENT.primitive_bitwidth
    BLOCK: tl.constexpr = BLOCK_K // IN_WORD
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    ks = tl.arange(0, BLOCK)
    places = _places(rows, ks, n, IN_WORD)
    words = k // IN_WORD
    keys, rank, known = choices_in_order(ids, token, top_k)
    partial = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    turn = 0
    start = 0
    read_once(options & SECOND_READ_ONCE)
    # One loop over choices and columns, so that the pipeline runs on from one expert to the next.
    for _ in tl.range(0, top_k * tl.cdiv(words, BLOCK), num_stages=STAGES):
        matrix, slot = choice_at(turn, keys, rank, known, token, top_k)
        weight = tl.load(weights + slot, mask=(options & WEIGHTS) != 0, other=1.0)
        # A dropped slot's weight may be anything.
        weight = tl.where(matrix >= 0, weight, 0.0)
        inside = (start + ks < words) & (matrix >= 0)
        a = tl.load(_words(x + slot.to(tl.int64) * x_pitch) + start + ks, mask=inside, other=0)
        at = _words(w + matrix.to(tl.int64) * n * k) + start * n + places
        b = tl.load(at, mask=inside[None, :], other=0, eviction_policy="evict_first")
        for nth in tl.static_range(IN_WORD):
            partial += _element(b, nth, ELEMENT) * (_element(a, nth, ELEMENT) * weight)[None, :]
        start += BLOCK
        done = start >= words
        turn += done.to(tl.int32)
        start = tl.where(done, 0, start)
    total = tl.sum(partial, axis=1)
    if (options & SECOND_BIAS) != 0:
        for choice in range(top_k):
            slot = token * top_k + choice
            matrix = tl.load(ids + slot)
            taken = matrix >= 0
            weight = tl.load(weights + slot, mask=taken & ((options & WEIGHTS) != 0), other=1.0)
            total += weight * tl.load(bias + matrix * n + rows, mask=taken, other=0.0)
    inside = rows < width
    total = add_shared_and_residual(total, token, rows, inside, shared, shared_scale, residual, row_pitch, options)
    tl.store(out + token.to(tl.int64) * width + rows, total.to(out.dtype.element_ty), mask=inside)
