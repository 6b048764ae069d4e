"""The product of grouped.py for experts with many rows, on sm_90: the same numbers, in less time. Tiles have 128 or 64 rows.

Not Triton but Gluon, its lower half, where copies, barriers and layouts are written down. Triton's pipeline over
all tiles of a program has no place in it for what a tile is: its entry on the list and its rows' slots, two loads that
depend on each other, are waited for once a tile. Here the list is read two tiles ahead and the slots one, while
the tensor cores have work. Input scales and activations by a code are left to grouped.py.

Parameters are grouped.project's, and mean the same; `input_scale` is passed and not looked at, nor is `bias` without BIAS. `w` is
always a tensor map. `x` is a pointer, whose rows are gathered if the options say so, or (X_DESCRIPTOR) a tensor map
over rows that are read as they lie: it must not reach past the memory there is, and gives zeros beyond its own end.
k is at least STAGES - 1 steps: the first steps of a tile are asked for during the last ones of the tile before.

Half the time. Of a tile of at most 64 rows the second warp group has none. If the options say so it then goes through the
tile's steps without multiplying, by code of its own, and the tensor cores have half the work. Both paths have as many
barriers (in their steps, ptx_checks.py counts them): PTX counts warps that arrive at a barrier, wherever they come from, as long
as those of a warp come together. compute-sanitizer's synccheck wants all to come from one place and reports these. With 256
rows for every expert, give or take, half of the experts have such a tile. Pieces then take unequal time, and as programs
walk in step (that is how tiles of an expert find its weights in the L2), they change places from round to round, so that
none falls behind. Where weights are large it costs more than it gains: the runtime decides (operators/project.ts). They
change places as well where busy experts are mixed in, whose pieces take other times than light ones': all that was measured
of runs of 16 was measured so, and with runs of one piece it made no difference but for two cells (1.6 % to either side).

In step. Tiles of an expert find its weights in the L2 if programs that go through the same columns do so at the same time, and
with rows of 7168 elements that is within a tenth of what a piece takes: else each reads the weights from memory, for which
the others wait, and fall behind in turn. If the options say so programs therefore meet: none asks for its next piece before
nearly all have come to theirs. By counters, first product of 4096 tokens of DeepSeek-V3's shape, 128 experts, Zipf 1: 14.0 GB
became 8.8, of 7.5 GB that the weights are, and 5095 us 3362 (H100). It is no barrier, and nothing but time depends
on it: who has waited for long goes on, and lets nobody else wait in this launch. The runtime decides here, too. The bucket kernel
leaves a count for the product that gathers and one for the product that does not, both empty; a third product of the same
list finds its count full, and does not wait.

Ahead. A second product (X_DESCRIPTOR) starts early behind a product only, so it finds its list complete, and asks for its
first weights before it waits for that one's end (overlap.py): while the last tiles of the first product are at work, memory
is free. A first product asks for weights before it looks up its rows.

All warps do everything else. A step's operands are asked for STAGES - 1 steps before they are multiplied, weights (and x)
by TMA with a barrier a stage, gathered rows of x by ordinary asynchronous copies. A step waits for the product of the
step before, whose stage is then free for the next operands. A warp group's accumulators are 64 rows by all columns.

Stores. Accumulators go to rows of 16-byte pieces through shared memory, what the stages leave of it: BLOCK_N / 2
columns at a time, which is all that a gated product has, and the half of a plain one.

Bits. An output element is a sum over k in steps of BLOCK_K, in order, as in grouped.py and with the same instructions:
bits are those of its tiles of as many rows. But with a bias the sum begins with it: accumulators take all registers there are,
and where it is added at the end it needs half as many again.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from overlap import begin
from routing.bucket import BEGUN

from .activation import join_gate
from .grouped import DENSE, GATHER, HALF_TIME, IN_STEP, PANEL, find_tile, first_panel_row

# In step: so many steps before it asks for the operands of its next piece a program says that it is about to. (2 and 8 take the
# same time.)
LEAD = gl.constexpr(4)
# It asks once all but a sixteenth (2^-4) of the programs have said so. (An eighth: 3 % longer in some cells of DeepSeek-V3's shape;
# all: 2 % longer in some of gpt-oss-20b's and large.)
REST_SHIFT = gl.constexpr(4)
# How often it looks how many have. 64 times are too few where pieces wait for memory, and programs gave up (DeepSeek-V3's shape,
# 2048 tokens, first product 3274 us instead of 2657); more would be lost where not all programs are on the GPU at once.
MOST_LOOKS = gl.constexpr(256)
# Above any number of pieces.
ENOUGH = gl.constexpr(2**30)


@gluon.jit
def _slots(first, rows, order, gather, BLOCK_M: gl.constexpr, LAYOUT: gl.constexpr):
    """Slots of a tile's rows: a load of its own, so that what it takes can pass unwaited for."""
    r = gl.arange(0, BLOCK_M, layout=gl.SliceLayout(1, LAYOUT))
    return gl.load(order + first + r, mask=(r < rows) & (gather != 0), other=0)


@gluon.jit
def _pointers(
    x, first, slots, x_pitch, top_k, gather, BLOCK_M: gl.constexpr, BLOCK_K: gl.constexpr, LAYOUT: gl.constexpr
):
    """Where this thread's pieces of a tile's first step are in x."""
    row = first + gl.arange(0, BLOCK_M, layout=gl.SliceLayout(1, LAYOUT))
    source = gl.where(gather != 0, slots // top_k, row)
    ks = gl.arange(0, BLOCK_K, layout=gl.SliceLayout(0, LAYOUT))
    return x + source.to(gl.int64)[:, None] * x_pitch + ks[None, :]


@gluon.jit
def _ask_weights(w, weight_row, n, step, there, a, b, bars, stage, X_DESCRIPTOR: gl.constexpr):
    """Asks for a step's weights, a panel, and tells the stage's barrier all that comes by TMA; if there is such a step."""
    a_stage = a.index(stage)
    b_stage = b.index(stage)
    a_bytes: gl.constexpr = a_stage.shape[0] * a_stage.shape[1] * 2 if X_DESCRIPTOR else 0
    b_bytes: gl.constexpr = b_stage.shape[0] * b_stage.shape[1] * 2
    mbarrier.expect(bars.index(stage), a_bytes + b_bytes, pred=there)
    tma.async_copy_global_to_shared(w, [weight_row + step * n, 0], bars.index(stage), b_stage, pred=there)


@gluon.jit
def _ask_rows(
    x, pointers, first, rows, step, there, a, bars, stage, X_DESCRIPTOR: gl.constexpr, LAYOUT: gl.constexpr
):
    """Asks for a step's rows of x."""
    a_stage = a.index(stage)
    at = step * a_stage.shape[1]
    if X_DESCRIPTOR:
        tma.async_copy_global_to_shared(x, [first, at], bars.index(stage), a_stage, pred=there)
    else:
        r = gl.arange(0, a_stage.shape[0], layout=gl.SliceLayout(1, LAYOUT))
        async_copy.async_copy_global_to_shared(a_stage, pointers + at, mask=(r < rows)[:, None])
        async_copy.commit_group()


@gluon.jit
def _rows_from_own_on(rows):
    """How many of a tile's rows are this warp group's or after them: a number that differs between warp groups."""
    return gl.inline_asm_elementwise(
        "{ .reg .b32 first; mov.u32 first, %tid.x; and.b32 first, first, 0xffffff80; shr.u32 first, first, 1;"
        " sub.s32 $0, $1, first; }",
        "=r,r",
        [rows],
        dtype=gl.int32,
        is_pure=True,
        pack=1,
    )


@gluon.jit
def _next_place(place, further, programs):
    """In round r program p has place (p + r * further) mod programs, further being 0 or 1."""
    return gl.where(place + further == programs, 0, place + further)


@gluon.jit
def _step(
    acc, stage, phase, operands, asked, step, there,
    X_DESCRIPTOR: gl.constexpr, STAGES: gl.constexpr, COPIES: gl.constexpr, MULTIPLY: gl.constexpr,
):  # fmt: skip
    """Issues one step's product, and once nobody reads the stage of the step before any more asks for operands there:
    those of step `step` of the tile that is asked for."""
    x, w, n, x_pitch, top_k, gather, a, b, bars, steps = operands
    pointers, first, rows, weight_row = asked
    if not X_DESCRIPTOR:
        async_copy.wait_group(STAGES - 2)
        # What ordinary copies wrote is read by the tensor cores.
        fence_async_shared()
        gl.thread_barrier()
    mbarrier.wait(bars.index(stage), phase)
    if MULTIPLY:
        acc = warpgroup_mma(a.index(stage), b.index(stage).permute((1, 0)), acc, is_async=True)
        acc = warpgroup_mma_wait(1, deps=[acc])
    gl.thread_barrier()
    free = gl.where(stage == 0, STAGES - 1, stage - 1)
    _ask_weights(w, weight_row, n, step, there, a, b, bars, free, X_DESCRIPTOR)
    _ask_rows(x, pointers, first, rows, step, there, a, bars, free, X_DESCRIPTOR, COPIES)
    stage = gl.where(stage == STAGES - 1, 0, stage + 1)
    phase = gl.where(stage == 0, phase ^ 1, phase)
    return acc, stage, phase


@gluon.jit
def _wait_for(begun, pieces):
    """Until so many pieces have been begun. If that takes too long nobody waits any more in this launch."""
    looks = 0
    while (looks < MOST_LOOKS) & (gl.load(begun, volatile=True) < pieces):
        looks += 1
    if looks == MOST_LOOKS:
        gl.atomic_max(begun, ENOUGH, sem="relaxed")


@gluon.jit
def _product(
    acc, operands, this, following, far, walk, in_step, stage, phase,
    X_DESCRIPTOR: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_K: gl.constexpr,
    STAGES: gl.constexpr, COPIES: gl.constexpr, MULTIPLY: gl.constexpr,
):  # fmt: skip
    """A tile's sums, added to `acc`, and what the next two tiles need; without MULTIPLY all but the products: as many barriers.

    `operands`: x and w, how rows of x are found, where operands are put and the barriers there, steps of a tile.
    `this`: what a tile's operands are asked for by. `following`: the same of the next tile, if there is one. `far`: the
    piece after it.
    """
    x, w, n, x_pitch, top_k, gather, a, b, bars, steps = operands
    pointers = this[0]
    next_slots, next_first, next_rows, next_weight_row, there = following
    begun, pieces, wait = in_step
    wait = wait & there
    early = gl.maximum(steps - LEAD, STAGES - 1)
    for i in range(STAGES - 1, early):
        acc, stage, phase = _step(acc, stage, phase, operands, this, i, True, X_DESCRIPTOR, STAGES, COPIES, MULTIPLY)
    if wait:
        gl.atomic_add(begun, 1, sem="relaxed")
    for i in range(early, steps):
        acc, stage, phase = _step(acc, stage, phase, operands, this, i, True, X_DESCRIPTOR, STAGES, COPIES, MULTIPLY)
    # While the tensor cores are busy: where the next tile's rows are, and what the tile after it is.
    if not X_DESCRIPTOR:
        pointers = _pointers(x, next_first, next_slots, x_pitch, top_k, gather, BLOCK_M, BLOCK_K, COPIES)
    far_matrix, far_first, far_rows, far_column = find_tile(far, walk, BLOCK_M, BLOCK_N, True)
    next_tile = (pointers, next_first, next_rows, next_weight_row)
    if wait:
        _wait_for(begun, pieces)
    for i in range(0, STAGES - 1):
        acc, stage, phase = _step(
            acc, stage, phase, operands, next_tile, i, there, X_DESCRIPTOR, STAGES, COPIES, MULTIPLY
        )
    if MULTIPLY:
        acc = warpgroup_mma_wait(0, deps=[acc])
    return acc, stage, phase, pointers, far_matrix, far_first, far_rows, far_column


@gluon.jit
def _bias(bias, matrix, column, n, there, BLOCK_N: gl.constexpr):
    """A tile's biases, a column a lane."""
    columns = column + gl.arange(0, BLOCK_N, layout=gl.BlockedLayout([1], [32], [gl.num_warps()], [0]))
    return gl.load(bias + matrix * n + columns, mask=(columns < n) & there, other=0.0)


@gluon.jit
def _store(out, result, first, rows, column, width, out_pitch):
    """Stores a tile's rows, as far as they are valid and the output is wide."""
    BLOCK_M: gl.constexpr = result.shape[0]
    COLUMNS: gl.constexpr = result.shape[1]
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [gl.num_warps(), 1], [1, 0])
    result = gl.convert_layout(result.to(out.dtype.element_ty), LAYOUT)
    r = gl.arange(0, BLOCK_M, layout=gl.SliceLayout(1, LAYOUT))
    columns = column + gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, LAYOUT))
    at = out + (first + r).to(gl.int64)[:, None] * out_pitch + columns[None, :]
    gl.store(at, result, mask=(r < rows)[:, None] & (columns < width)[None, :])


@gluon.jit
def project_many(
    x,
    w,
    bias,
    out,
    tiles,
    tile_count,
    order,
    input_scale,
    n,
    k,
    x_pitch,
    out_pitch,
    top_k,
    dense_matrix,
    group,  # of a dense product
    options,
    code,
    linear,
    cubic,
    limit,
    shift,
    GATED: gl.constexpr,
    ACTIVATION: gl.constexpr,
    BIAS: gl.constexpr,
    X_DESCRIPTOR: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_K: gl.constexpr,
    STAGES: gl.constexpr,
    DEPENDENT: gl.constexpr,
):
    WARPS: gl.constexpr = gl.num_warps()
    gl.static_assert(BLOCK_M == 16 * WARPS, "a warp has 16 rows of the accumulators")
    gl.static_assert(BLOCK_K == PANEL, "a step is a panel")
    ELEMENT: gl.constexpr = out.dtype.element_ty
    # A warp's copy is four rows of 128 bytes.
    COPIES: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [WARPS, 1], [1, 0])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BLOCK_N, 16])
    A: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_M, BLOCK_K], ELEMENT)
    B: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_N, BLOCK_K], ELEMENT)
    a = gl.allocate_shared_memory(ELEMENT, [STAGES, BLOCK_M, BLOCK_K], A)
    b = gl.allocate_shared_memory(ELEMENT, [STAGES, BLOCK_N, BLOCK_K], B)
    bars = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for s in gl.static_range(STAGES):
        mbarrier.init(bars.index(s), count=1)
    fence_async_shared()
    gl.thread_barrier()
    if not X_DESCRIPTOR:
        begin(DEPENDENT)

    PARTS: gl.constexpr = 2 if GATED else 1
    width = n // PARTS
    programs = gl.num_programs(0)
    columns = gl.cdiv(n, BLOCK_N)
    dense = options & DENSE
    gather = options & GATHER
    dense_rows = gl.load(tile_count)
    row_tiles = gl.where(dense != 0, gl.cdiv(dense_rows, BLOCK_M), dense_rows)
    total = row_tiles * columns
    busy = gl.load(tile_count + 1, mask=dense == 0, other=0) * columns
    walk = (total, busy, columns, row_tiles, group, tiles, dense_matrix, dense_rows, dense)
    operands = (x, w, n, x_pitch, top_k, gather, a, b, bars, k // BLOCK_K)

    half_time = (options & HALF_TIME) != 0
    # Where pieces take unequal time programs change places from round to round: the next one's instead of always its own.
    further = gl.where(half_time | (busy > 0), 1, 0)
    rounds = gl.cdiv(total, programs)
    last = (gl.program_id(0) + (rounds - 1) * further) % programs
    # Those for whom there is none left in the last round.
    rounds = gl.where((rounds - 1) * programs + last < total, rounds, rounds - 1)
    place = gl.program_id(0)
    work = place
    matrix, first, rows, column = find_tile(work, walk, BLOCK_M, BLOCK_N, True)
    place = _next_place(place, further, programs)
    next_work = programs + place
    next_matrix, next_first, next_rows, next_column = find_tile(next_work, walk, BLOCK_M, BLOCK_N, True)
    there = work < total
    begun = tile_count + (BEGUN + 1 if X_DESCRIPTOR else BEGUN)
    wait = (options & IN_STEP) != 0
    if wait & there:
        gl.atomic_add(begun, 1, sem="relaxed")
    for s in gl.static_range(STAGES - 1):
        _ask_weights(w, first_panel_row(matrix, column, n, k), n, s, there, a, b, bars, s, X_DESCRIPTOR)
    if X_DESCRIPTOR:
        # The list and the weights do not depend on the kernel in front.
        begin(DEPENDENT)
        pointers = 0
    else:
        slots = _slots(first, rows, order, gather, BLOCK_M, COPIES)
        pointers = _pointers(x, first, slots, x_pitch, top_k, gather, BLOCK_M, BLOCK_K, COPIES)
    next_bias = _bias(bias, matrix, column, n, there, BLOCK_N) if BIAS else 0
    for s in gl.static_range(STAGES - 1):
        _ask_rows(x, pointers, first, rows, s, there, a, bars, s, X_DESCRIPTOR, COPIES)
    stage = gl.to_tensor(0)
    phase = gl.to_tensor(0)
    for turn in range(0, rounds):
        if not X_DESCRIPTOR:
            next_slots = _slots(next_first, next_rows, order, gather, BLOCK_M, COPIES)
        else:
            next_slots = 0
        this = (pointers, first, rows, first_panel_row(matrix, column, n, k))
        next_weight_row = first_panel_row(next_matrix, next_column, n, k)
        following = (next_slots, next_first, next_rows, next_weight_row, next_work < total)
        acc = gl.zeros([BLOCK_M, BLOCK_N], gl.float32, layout=SUMS)
        if BIAS:
            # Of this tile, asked for a tile ago.
            acc = acc + gl.convert_layout(next_bias, gl.SliceLayout(0, SUMS))[None, :]
            next_bias = _bias(bias, next_matrix, next_column, n, next_work < total, BLOCK_N)
        place = _next_place(place, further, programs)
        far = (turn + 2) * programs + place
        in_step = (begun, gl.minimum((turn + 2) * programs, total) - (programs >> REST_SHIFT), wait)
        # A single warp group has rows of every tile.
        if WARPS == 4 or _rows_from_own_on(gl.where(half_time, rows, BLOCK_M)) > 0:
            acc, stage, phase, pointers, far_matrix, far_first, far_rows, far_column = _product(
                acc, operands, this, following, far, walk, in_step, stage, phase,
                X_DESCRIPTOR, BLOCK_M, BLOCK_N, BLOCK_K, STAGES, COPIES, True,
            )  # fmt: skip
        else:
            acc, stage, phase, pointers, far_matrix, far_first, far_rows, far_column = _product(
                acc, operands, this, following, far, walk, in_step, stage, phase,
                X_DESCRIPTOR, BLOCK_M, BLOCK_N, BLOCK_K, STAGES, COPIES, False,
            )  # fmt: skip
        if GATED:
            gate, value = acc.reshape([BLOCK_M, BLOCK_N // 2, 2]).split()
            result = join_gate(gate, value, code, linear, cubic, limit, shift, ACTIVATION)
            _store(out, result, first, rows, column // 2, width, out_pitch)
        else:
            left, right = acc.reshape([BLOCK_M, 2, BLOCK_N // 2]).permute([0, 2, 1]).split()
            _store(out, left, first, rows, column, width, out_pitch)
            _store(out, right, first, rows, column + BLOCK_N // 2, width, out_pitch)
        next_work = far
        matrix, first, rows, column = next_matrix, next_first, next_rows, next_column
        next_matrix, next_first, next_rows, next_column = far_matrix, far_first, far_rows, far_column
    if not X_DESCRIPTOR:
        async_copy.wait_group(0)
