"""Logits to expert ids and weights, and who chose whom, in one pass over the logits.

A warp holds a row: nothing of size tokens x experts is written but one bit for each pair, the set of tokens that chose
an expert, 32 tokens to a word, put there by integer atomics, whose order does not show. From that set bucket.py has an
expert's count, and the rank of a token among those that chose it, by counting bits and without sorting. A program has a
byte of every word, takes out what the launch before left there while it waits for its logits, and so needs no sets that are empty.
(Gathering a program's bits in shared memory instead took 1.3 us more for 512 tokens on an H200.)

Selection works on integers. A float32 and the integer of the same bits, its low 31 bits flipped if negative, are in the
same order, and Hopper and Ampere reduce an integer over a warp in one instruction: a pick is the largest key, then the
lowest index that has it. Without a selection bias the key is the logit itself, since softmax and the logistic function
keep the order of logits (and lose fewer ties than their rounded values would). So scores are computed for all experts
only where they are added to something.

The rules are run-time codes, the same for a whole launch. They are those of src/execution/operators.ts. What few
models need (selection bias, group limits, sparsemixer) is left out of the PLAIN kernels: half a microsecond less for 512
tokens, on an H200.
"""

import triton
import triton.language as tl

from overlap import begin

# Part of the ABI.
SCORINGS = {"softmax": 0, "sigmoid": 1, "topk-softmax": 2, "topk-sigmoid": 3, "sparsemixer": 4}
OPTIONS = {"bias": 1, "renormalize": 2, "top2_sum": 4, "sets": 8, "counts": 16}
LOGITS = {"float32": 0, "bfloat16": 1, "float16": 2}
FLOAT32 = tl.constexpr(LOGITS["float32"])
BFLOAT16 = tl.constexpr(LOGITS["bfloat16"])
FLOAT16 = tl.constexpr(LOGITS["float16"])
SOFTMAX = tl.constexpr(SCORINGS["softmax"])
SIGMOID = tl.constexpr(SCORINGS["sigmoid"])
TOPK_SOFTMAX = tl.constexpr(SCORINGS["topk-softmax"])
TOPK_SIGMOID = tl.constexpr(SCORINGS["topk-sigmoid"])
SPARSEMIXER = tl.constexpr(SCORINGS["sparsemixer"])
BIAS = tl.constexpr(OPTIONS["bias"])
RENORMALIZE = tl.constexpr(OPTIONS["renormalize"])
TOP2_SUM = tl.constexpr(OPTIONS["top2_sum"])
SETS = tl.constexpr(OPTIONS["sets"])
COUNTS = tl.constexpr(OPTIONS["counts"])

# Tokens to a word of the sets.
WORD_TOKENS = tl.constexpr(32)
# Rows, and warps, of a program.
ROWS = 8
# Most experts a token can choose: a lane each.
MOST_CHOICES = 32

# Below the key of every float: what is not, or no longer, to be chosen from.
LOWEST = tl.constexpr(-(2**31))
NO_COLUMN = tl.constexpr(2**31 - 1)
# Above the key of +infinity.
NAN_KEY = tl.constexpr(2**31 - 1)
KEY_INFINITY = tl.constexpr(0x7F800000)
KEY_MINUS_INFINITY = tl.constexpr(-0x7F800001)
# The fault word where no row is at fault.
NO_FAULT = tl.constexpr(2**31 - 1)
# Keeps a sum of weights that are all zero from dividing by zero (DeepSeek-V3).
RENORMALIZE_EPSILON = tl.constexpr(1e-20)


@triton.jit
def _flip(bits):
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _key(x):
    """Integers in the order of the floats; adding zero makes -0 the same as 0."""
    return tl.where(x != x, NAN_KEY, _flip((x + 0.0).to(tl.int32, bitcast=True)))


@triton.jit
def _value(key):
    """The float of a key."""
    return _flip(key).to(tl.float32, bitcast=True)


# Tensors are [rows, parts, 32] throughout, with 1 where nothing varies: expert 32 * part + lane, in lane `lane` of the
# row's warp.


@triton.jit
def _most(x):
    """[rows, 1, 1]: each row's largest. Of each lane's own first, which costs no exchange."""
    return tl.max(tl.max(x, axis=1, keep_dims=True), axis=2, keep_dims=True)


@triton.jit
def _added(x):
    return tl.sum(tl.sum(x, axis=1, keep_dims=True), axis=2, keep_dims=True)


@triton.jit
def _best(key, column):
    """Each row's largest key, and the first column that has it."""
    best = _most(key)
    at = tl.where(key == best, column, NO_COLUMN)
    return best, tl.min(tl.min(at, axis=1, keep_dims=True), axis=2, keep_dims=True)


@triton.jit
def load_logits(logits, kind, at, mask, other):
    """float32 of what is at these places of logits whose type is `kind`, one of LOGITS."""
    x = tl.load(logits + at, mask=mask & (kind == FLOAT32), other=other)
    halves = tl.load(logits.to(tl.pointer_type(tl.bfloat16), bitcast=True) + at, mask=mask & (kind == BFLOAT16), other=other)
    x = tl.where(kind == BFLOAT16, halves.to(tl.float32), x)
    halves = tl.load(logits.to(tl.pointer_type(tl.float16), bitcast=True) + at, mask=mask & (kind == FLOAT16), other=other)
    return tl.where(kind == FLOAT16, halves.to(tl.float32), x)


@triton.jit
def pick(logits, kind, token, nth, experts, EXPERTS: tl.constexpr, WARPS: tl.constexpr):
    """The expert that `choose` gives a token as number `nth` if PLAIN, a scalar; in rows without finite weights some expert, another for every
    number.

    For kernels that need one of a token's choices and nothing else. Each warp finds it for itself.
    """
    copy = tl.arange(0, WARPS)[:, None, None]
    column = tl.arange(0, EXPERTS // 32)[None, :, None] * 32 + tl.arange(0, 32)[None, None, :]
    inside = column < experts
    # The same for all warps, which a layout cannot know.
    at = token.to(tl.int64) * experts + column + copy * 0
    left = tl.where(inside, _key(load_logits(logits, kind, at, inside, 0.0)), LOWEST)
    _, chosen = _best(left, column)
    for _ in range(nth):
        left = tl.where(column == chosen, LOWEST, left)
        _, chosen = _best(left, column)
    return tl.max(tl.max(tl.max(chosen, axis=2), axis=1), axis=0)


@triton.jit
def turns(logits, kind, expert, live, experts, EXPERTS: tl.constexpr, TOKENS: tl.constexpr, WARPS: tl.constexpr):
    """A word: a byte for each of a few tokens, the number as which `pick` picks it an expert, also in rows without finite weights; top_k or more
    if it does not, 255 if the token does not live. Each warp finds it for itself."""
    copy = tl.arange(0, WARPS)[:, None, None]
    column = tl.arange(0, EXPERTS // 32)[None, :, None] * 32 + tl.arange(0, 32)[None, None, :]
    inside = column < experts
    tl.static_assert(TOKENS <= 4, "a word has four bytes")
    # So many that a lane has no more than sixteen keys.
    AT_ONCE: tl.constexpr = TOKENS if EXPERTS <= 128 else 512 // EXPERTS
    numbers = copy * 0
    for first in tl.range(0, TOKENS, AT_ONCE, num_stages=1):
        keys = ()
        for ahead in tl.static_range(AT_ONCE):
            token = first + ahead
            at = token * experts + column + copy * 0
            keys += (tl.where(inside, _key(load_logits(logits, kind, at, inside & (token < live), 0.0)), LOWEST),)
        for ahead in tl.static_range(AT_ONCE):
            token = first + ahead
            key = keys[ahead]
            own = _most(tl.where(column == expert, key, LOWEST))
            before = (key > own) | ((key == own) & (column < expert))
            number = tl.where(token < live, tl.minimum(_added(before.to(tl.int32)), 255), 255)
            numbers = numbers | (number << (8 * token))
    return tl.max(tl.max(tl.max(numbers, axis=2), axis=1), axis=0)


@triton.jit
def _limit_groups(key, column, inside, experts, groups, keep, options):
    """The keys, with all experts outside the best groups at LOWEST (DeepSeek-V2 and V3)."""
    size = experts // groups
    group = tl.where(inside, column // size, groups)
    # Every column holds its group's key. (Made from `key`, not with tl.full: a new tensor may be laid out otherwise.)
    group_key = tl.where(inside, LOWEST, key)
    kept = group_key
    for g in range(groups):
        member = group == g
        mine = tl.where(member, key, LOWEST)
        score, at = _best(mine, column)
        if (options & TOP2_SUM) != 0:
            second = _most(tl.where(column == at, LOWEST, mine))
            score = _key(_value(score) + _value(tl.maximum(second, KEY_MINUS_INFINITY)))
        group_key = tl.where(member, score, group_key)
    for _ in range(keep):
        best, at = _best(group_key, column)
        member = group == at // size
        kept = tl.where(member, key, kept)
        group_key = tl.where(member, LOWEST, group_key)
    return kept


@triton.jit
def choose(
    x, bias, experts, top_k, scoring, options, groups, keep, scale, jitter,
    EXPERTS: tl.constexpr, ROWS: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """Of rows of logits [ROWS, EXPERTS / 32, 32] the experts and their weights, [ROWS, 1, 32] with a lane for each choice, best
    first; whether a row is sound, [ROWS, 1, 1]: has finite weights; and which experts these are, by column. Arguments as for `route`."""
    lane = tl.arange(0, 32)[None, None, :]
    column = tl.arange(0, EXPERTS // 32)[None, :, None] * 32 + lane
    inside = column < experts
    logit_key = _key(x)
    top_key = _most(logit_key)
    # No NaN, no +infinity, and not -infinity (which masks an expert) throughout.
    sound = (top_key > KEY_MINUS_INFINITY) & (top_key < KEY_INFINITY)
    top = _value(top_key)
    share = tl.full((ROWS, 1, 1), 1.0, tl.float32)
    if scoring == SOFTMAX:
        share = 1.0 / _added(tl.exp(x - top))

    key = logit_key
    by_score = (not PLAIN) and (options & (BIAS | TOP2_SUM)) != 0
    if by_score:
        score = x
        if scoring == SOFTMAX:
            score = tl.exp(x - top) * share
        elif scoring == SIGMOID:
            score = tl.sigmoid(x)
        # Loaded by each row for itself, into the layout of the logits.
        biases = tl.broadcast_to(bias + column, (ROWS, EXPERTS // 32, 32))
        score += tl.load(biases, mask=inside & ((options & BIAS) != 0), other=0.0)
        key = _key(score)
        sound = sound & (_most(key) < NAN_KEY)
    key = tl.where(inside, key, LOWEST)
    if (not PLAIN) and groups > 0:
        key = _limit_groups(key, column, inside, experts, groups, keep, options)

    chosen_id = tl.zeros((ROWS, 1, 32), dtype=tl.int32)
    weight = tl.zeros((ROWS, 1, 32), dtype=tl.float32)
    left = key
    for pick in range(top_k):
        best, at = _best(left, column)
        hit = column == at
        if by_score:
            best = _most(tl.where(hit, logit_key, LOWEST))
        value = _value(best)
        if (not PLAIN) and scoring == SPARSEMIXER:
            # Phi-3.5-MoE (arXiv 2409.12136), as it runs outside training.
            distance = (value - x) / tl.maximum(tl.abs(x), value)
            far = (left == LOWEST) | (distance > 2 * jitter)
            value = 1.0 / _added(tl.where(far, 0.0, tl.exp(x - value)))
        chosen_id = tl.where(lane == pick, at, chosen_id)
        weight = tl.where(lane == pick, value, weight)
        left = tl.where(hit, LOWEST, left)

    # `weight` holds the chosen logits; sparsemixer's are done.
    asked = lane < top_k
    if scoring == SOFTMAX:
        weight = tl.exp(weight - top) * share
    elif scoring == TOPK_SOFTMAX:
        weight = tl.where(asked, weight, float("-inf"))
        weight = tl.exp(weight - _most(weight))
        weight = weight / _added(weight)
    elif scoring != SPARSEMIXER:
        weight = tl.sigmoid(weight)
    if (options & RENORMALIZE) != 0:
        weight = weight / (_added(tl.where(asked, weight, 0.0)) + RENORMALIZE_EPSILON)
    weight = weight * scale
    finite = tl.abs(weight) < float("inf")
    sound = sound & (_most(tl.where(asked & ~finite, 1, 0)) == 0)
    return chosen_id, weight, sound, inside & (left == LOWEST)


@triton.jit
def store_choices(chosen_id, weight, sound, row, live, ids, weights, top_k):
    """Stores what `choose` gave for these rows, if they are live. Tells which choices there are."""
    lane = tl.arange(0, 32)[None, None, :]
    asked = live & (lane < top_k)
    slot = row * top_k + lane
    tl.store(ids + slot, tl.where(sound, chosen_id, -1), mask=asked)
    tl.store(weights + slot, tl.where(sound, weight, 0.0), mask=asked)
    return asked & sound


@triton.jit
def route_few(
    logits, kind, row, live, ids, weights, counts, counts_host, fault, fault_host, experts, top_k, most_tokens, scoring, options, scale,
    EXPERTS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """All of routing for tokens that a single program has, by a plain rule and without sets.

    Counts are put to `counts`, not added, and to `counts_host` unless that is 0; the fault word, lowered, to `fault_host` as well. What
    `logits` points to is by `kind` one of LOGITS.
    """
    column = tl.arange(0, EXPERTS // 32)[None, :, None] * 32 + tl.arange(0, 32)[None, None, :]
    inside = column < experts
    x = load_logits(logits, kind, row * experts + column, (row < most_tokens) & inside, float("-inf"))
    no_bias = weights
    chosen_id, weight, sound, taken = choose(
        x, no_bias, experts, top_k, scoring, options, 0, 0, scale, 0.0, EXPERTS, ROWS, True
    )  # fmt: skip
    store_choices(chosen_id, weight, sound, row, live, ids, weights, top_k)
    count = tl.sum((taken & live & sound).to(tl.int32), axis=0, keep_dims=True)
    tl.store(counts + column, count, mask=inside)
    tl.store(counts_host + column, count, mask=inside & (counts_host.to(tl.int64, bitcast=True) != 0))
    first = tl.min(tl.min(tl.min(tl.where(live & ~sound, row, NO_FAULT), axis=2), axis=1), axis=0)
    tl.store(fault_host, tl.minimum(first, tl.atomic_min(fault, first, sem="relaxed")))


@triton.jit
def route(
    logits,  # [most_tokens, experts]
    bias,  # float32 [experts], added to scores for selection, if BIAS
    tokens,  # int32 [1]
    ids,  # out: int32 [most_tokens, top_k], best first; -1 in rows without finite weights
    weights,  # out: float32 [most_tokens, top_k]; 0 in such rows
    sets,  # out: int32 [ceil(most_tokens / 32), EXPERTS], if SETS: bit t of a word is token 32 * i + t; others stay as they are
    counts,  # in and out: int32 [experts], if COUNTS: tokens of each expert, added to what is there
    fault,  # int32 [1]: lowered to the first row without finite weights
    experts,
    top_k,
    most_tokens,
    scoring,
    options,
    groups,  # 0: no group limit
    keep,
    scale,
    jitter,
    EXPERTS: tl.constexpr,
    ROWS: tl.constexpr,
    PLAIN: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Program i: tokens ROWS * i and on."""
    begin(DEPENDENT)
    live_tokens = tl.load(tokens)
    in_program = tl.arange(0, ROWS)[:, None, None]
    row = tl.program_id(0) * ROWS + in_program
    lane = tl.arange(0, 32)[None, None, :]
    column = tl.arange(0, EXPERTS // 32)[None, :, None] * 32 + lane
    inside = column < experts
    # Masked by what the buffer has room for, not by the tokens there are: neither load waits for the other.
    x = tl.load(
        logits + row.to(tl.int64) * experts + column, mask=(row < most_tokens) & inside, other=float("-inf")
    ).to(tl.float32)
    live = row < live_tokens
    if (options & SETS) != 0:
        first = tl.program_id(0) * ROWS
        words = sets + first // WORD_TOKENS * EXPERTS + tl.arange(0, EXPERTS)
        others = ~(((1 << ROWS) - 1) << (first % WORD_TOKENS))
        tl.atomic_and(words, tl.zeros((EXPERTS,), tl.int32) + others, sem="relaxed")
    chosen_id, weight, sound, _ = choose(
        x, bias, experts, top_k, scoring, options, groups, keep, scale, jitter, EXPERTS, ROWS, PLAIN
    )  # fmt: skip
    chosen = store_choices(chosen_id, weight, sound, row, live, ids, weights, top_k)
    tl.atomic_min(fault + in_program * 0, row, mask=live & ~sound, sem="relaxed")
    if (options & SETS) != 0:
        # A bit is set by another thread than the one that took out what was there.
        tl.debug_barrier()
        word = sets + (row // WORD_TOKENS) * EXPERTS + chosen_id
        tl.atomic_or(word, tl.zeros_like(chosen_id) + (1 << (row % WORD_TOKENS)), mask=chosen, sem="relaxed")
    if (options & COUNTS) != 0:
        tl.atomic_add(counts + chosen_id, tl.full(chosen_id.shape, 1, tl.int32), mask=chosen, sem="relaxed")
