"""The product of grouped.py for experts with many rows, on sm_90: the same numbers, in less time. Tiles have 128, 64 or 32 rows.

Not Triton but Gluon, its lower half, where copies, barriers and layouts are written down. Triton's pipeline over
all tiles of a program has no place in it for what a tile is: its entry on the list and its rows' slots, two loads that
depend on each other, are waited for once a tile. Here they are asked for some steps apart while the tensor cores have work.
Which piece that is, pieces.py tells. Input scales and activations by a code are left to grouped.py.

Parameters are grouped.project's, and mean the same; `input_scale` is passed and not looked at, nor is `bias` without BIAS. `w` is
always a tensor map. `x` is a pointer, whose rows are gathered if the options say so, or (X_DESCRIPTOR) a tensor map
over rows that are read as they lie: it must not reach past the memory there is, and gives zeros beyond its own end.
k is at least STAGES - 1 steps: the first steps of a tile are asked for during the last ones of the tile before.

Half the time. Of a tile of at most 64 rows the second warp group has none. If the options say so it then goes through the
tile's steps without multiplying, by code of its own, and the tensor cores have half the work. Both paths have as many
barriers (in their steps, ptx_checks.py counts them): PTX counts warps that arrive at a barrier, wherever they come from, as long
as those of a warp come together. compute-sanitizer's synccheck wants all to come from one place and reports these. With 256
rows for every expert, give or take, half of the experts have such a tile. Where weights are large and pieces are dealt it costs more
than it gains: the runtime decides (operators/lane.ts).

Ahead. A second product (X_DESCRIPTOR) starts early behind a product only, so it finds its list complete, and asks for its
first weights before it waits for that one's end (overlap.py): while the last tiles of the first product are at work, memory
is free. A first product asks for weights before it looks up its rows.

All warps do everything else. A step's operands are asked for STAGES - 1 steps before they are multiplied, weights (and x)
by TMA with a barrier a stage, gathered rows of x by ordinary asynchronous copies. A step waits for the product of the
step before, whose stage is then free for the next operands. A warp group's accumulators are 64 rows by all columns.

Swapped. A warp group multiplies 64 rows of the first operand at least, and any number of columns of the second. So tiles of 32 rows
are worked out the other way round, out^T = w . x^T: the tensor cores' work is 64 weights by 32 tokens, where it would be 64 tokens,
half of which there are not, by 64 weights. That saves no time where products wait for memory; it saves energy.

Stores. Accumulators go to rows of 16-byte pieces through shared memory, what the stages leave of it: BLOCK_N / 2
columns at a time, which is all that a gated product has, and the half of a plain one. A warp's rows stay its own (but those of
swapped tiles, which are turned round on that way).

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

from l2 import read_once
from overlap import begin
from routing.bucket import BEGUN

from .activation import join_gate
from .grouped import CLAIM, DENSE, GATHER, HALF_TIME, IN_STEP, KEEP, PANEL, READ_ONCE, find_tile, first_panel_row
from .pieces import ask_for_claim, begun_by_round, claimed_piece, next_place, wait_for

# Rows of the first operand that a warp group multiplies at least: tiles of fewer are swapped.
WARP_GROUP_ROWS = gl.constexpr(64)

# So many steps before it asks for the operands of its next piece a program claims it, asks what it is, and asks where its rows are
# and says that it is about to begin: what one asks for is there by the time of the next. (2, 3 and 2 steps earlier or later: within
# 1 %, but in step 1 to 3 % more on tiles of 64 rows the earlier programs say so.)
CLAIMED = gl.constexpr(8)
LOOKED_UP = gl.constexpr(6)
FOUND = gl.constexpr(4)


@gluon.jit
def slots_of(first, rows, order, gather, BLOCK_M: gl.constexpr, LAYOUT: gl.constexpr):
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
def _step(
    acc, stage, phase, operands, asked, step, there,
    X_DESCRIPTOR: gl.constexpr, STAGES: gl.constexpr, COPIES: gl.constexpr, MULTIPLY: gl.constexpr,
):  # fmt: skip
    """Issues one step's product, and once nobody reads the stage of the step before any more asks for operands there:
    those of step `step` of the tile that is asked for."""
    x, w, n, k, x_pitch, top_k, gather, order, a, b, bars, steps = operands
    pointers, first, rows, weight_row = asked
    SWAPPED: gl.constexpr = a.shape[1] < WARP_GROUP_ROWS
    if not X_DESCRIPTOR:
        async_copy.wait_group(STAGES - 2)
        # What ordinary copies wrote is read by the tensor cores.
        fence_async_shared()
        gl.thread_barrier()
    mbarrier.wait(bars.index(stage), phase)
    if MULTIPLY:
        if SWAPPED:
            acc = warpgroup_mma(b.index(stage), a.index(stage).permute((1, 0)), acc, is_async=True)
        else:
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
def _product(
    acc, operands, this, walk, dealt, pieces, once, stage, phase,
    X_DESCRIPTOR: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_K: gl.constexpr,
    STAGES: gl.constexpr, COPIES: gl.constexpr, MULTIPLY: gl.constexpr,
):  # fmt: skip
    """A tile's sums, added to `acc`, and what is next; without MULTIPLY all but the products: as many barriers.

    `operands`: x and w, how rows of x are found, where operands are put and the barriers there, steps of a tile.
    `this`: what a tile's operands are asked for by. `dealt`: the program's next piece, unless it claims one. `pieces`: how it comes
    by that, and when. `once`: whether weights of a tile that is alone are read once (l2.py).
    """
    x, w, n, k, x_pitch, top_k, gather, order, a, b, bars, steps = operands
    total = walk[0]
    begun, box, programs, claim, in_step, enough = pieces
    pointers = this[0]
    in_step = in_step & (dealt < total)
    claimed_at = gl.maximum(steps - CLAIMED, STAGES - 1)
    looked_up = gl.maximum(steps - LOOKED_UP, STAGES - 1)
    found = gl.maximum(steps - FOUND, STAGES - 1)
    for i in range(STAGES - 1, claimed_at):
        acc, stage, phase = _step(acc, stage, phase, operands, this, i, True, X_DESCRIPTOR, STAGES, COPIES, MULTIPLY)
    number = ask_for_claim(begun, claim)
    for i in range(claimed_at, looked_up):
        acc, stage, phase = _step(acc, stage, phase, operands, this, i, True, X_DESCRIPTOR, STAGES, COPIES, MULTIPLY)
    claimed = claimed_piece(number, box, begun, claim, programs, total)
    work = gl.where(claim, claimed, dealt)
    matrix, first, rows, column, alone = find_tile(work, walk, BLOCK_M, BLOCK_N, True)
    for i in range(looked_up, found):
        acc, stage, phase = _step(acc, stage, phase, operands, this, i, True, X_DESCRIPTOR, STAGES, COPIES, MULTIPLY)
    if not X_DESCRIPTOR:
        slots = slots_of(first, rows, order, gather, BLOCK_M, COPIES)
    if in_step:
        gl.atomic_add(begun, 1, sem="relaxed")
    for i in range(found, steps):
        acc, stage, phase = _step(acc, stage, phase, operands, this, i, True, X_DESCRIPTOR, STAGES, COPIES, MULTIPLY)
    if not X_DESCRIPTOR:
        pointers = _pointers(x, first, slots, x_pitch, top_k, gather, BLOCK_M, BLOCK_K, COPIES)
    following = (pointers, first, rows, first_panel_row(matrix, column, n, k))
    if in_step:
        wait_for(begun, enough)
    read_once(gl.where(alone, once, 0))
    for i in range(0, STAGES - 1):
        acc, stage, phase = _step(
            acc, stage, phase, operands, following, i, work < total, X_DESCRIPTOR, STAGES, COPIES, MULTIPLY
        )
    if MULTIPLY:
        acc = warpgroup_mma_wait(0, deps=[acc])
    return acc, stage, phase, work, pointers, matrix, first, rows, column


@gluon.jit
def _bias(bias, matrix, column, n, there, BLOCK_N: gl.constexpr):
    """A tile's biases, a column a lane."""
    columns = column + gl.arange(0, BLOCK_N, layout=gl.BlockedLayout([1], [32], [gl.num_warps()], [0]))
    return gl.load(bias + matrix * n + columns, mask=(columns < n) & there, other=0.0)


@gluon.jit
def store_rows(out, result, first, rows, column, width, out_pitch, keep=False):
    """Stores a tile's rows, as far as they are valid and the output is wide; if `keep`, so that the L2 gives them up last (l2.py)."""
    BLOCK_M: gl.constexpr = result.shape[0]
    COLUMNS: gl.constexpr = result.shape[1]
    # A warp stores the rows whose sums it has, so that none waits for another: lanes side by side for a row of 16-byte pieces.
    ACROSS: gl.constexpr = COLUMNS // 8
    ROWS: gl.constexpr = BLOCK_M * ACROSS // (32 * gl.num_warps())
    LAYOUT: gl.constexpr = gl.BlockedLayout([ROWS, 8], [32 // ACROSS, ACROSS], [gl.num_warps(), 1], [1, 0])
    result = gl.convert_layout(result.to(out.dtype.element_ty), LAYOUT)
    r = gl.arange(0, BLOCK_M, layout=gl.SliceLayout(1, LAYOUT))
    columns = column + gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, LAYOUT))
    at = out + (first + r).to(gl.int64)[:, None] * out_pitch + columns[None, :]
    mask = (r < rows)[:, None] & (columns < width)[None, :]
    if keep is False:
        gl.store(at, result, mask=mask)
    else:
        gl.store(at, result, mask=mask & ~keep)
        gl.store(at, result, mask=mask & keep, eviction_policy="evict_last")


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
    SWAPPED: gl.constexpr = BLOCK_M < WARP_GROUP_ROWS
    gl.static_assert(SWAPPED or BLOCK_M == 16 * WARPS, "a warp has 16 rows of the accumulators")
    gl.static_assert(BLOCK_K == PANEL, "a step is a panel")
    ELEMENT: gl.constexpr = out.dtype.element_ty
    # A warp's copy is four rows of 128 bytes.
    COPIES: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [WARPS, 1], [1, 0])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BLOCK_M if SWAPPED else BLOCK_N, 16])
    A: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_M, BLOCK_K], ELEMENT)
    B: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_N, BLOCK_K], ELEMENT)
    # Lanes side by side have a row's columns, as it is stored: those that an activation joins in one thread's registers.
    ACROSS: gl.constexpr = BLOCK_N // 16
    TURNED: gl.constexpr = gl.BlockedLayout([BLOCK_M * ACROSS // (32 * WARPS), 16], [32 // ACROSS, ACROSS], [WARPS, 1], [1, 0])
    a = gl.allocate_shared_memory(ELEMENT, [STAGES, BLOCK_M, BLOCK_K], A)
    b = gl.allocate_shared_memory(ELEMENT, [STAGES, BLOCK_N, BLOCK_K], B)
    bars = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    box = gl.allocate_shared_memory(gl.int32, [32 * WARPS], gl.SwizzledSharedLayout(1, 1, 1, [0]))
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
    operands = (x, w, n, k, x_pitch, top_k, gather, order, a, b, bars, k // BLOCK_K)

    half_time = (options & HALF_TIME) != 0
    claim = (options & CLAIM) != 0
    in_step = (options & IN_STEP) != 0
    once = options & READ_ONCE
    keep = (options & KEEP) != 0
    begun = tile_count + (BEGUN + 1 if X_DESCRIPTOR else BEGUN)
    # Where dealt pieces take unequal time programs change places from round to round.
    further = gl.where(half_time | (busy > 0), 1, 0)
    place = gl.program_id(0)
    work = place
    matrix, first, rows, column, alone = find_tile(work, walk, BLOCK_M, BLOCK_N, True)
    read_once(gl.where(alone, once, 0))
    there = work < total
    for s in gl.static_range(STAGES - 1):
        _ask_weights(w, first_panel_row(matrix, column, n, k), n, s, there, a, b, bars, s, X_DESCRIPTOR)
    if X_DESCRIPTOR:
        # The list and the weights do not depend on the kernel in front.
        begin(DEPENDENT)
        pointers = 0
    else:
        slots = slots_of(first, rows, order, gather, BLOCK_M, COPIES)
        pointers = _pointers(x, first, slots, x_pitch, top_k, gather, BLOCK_M, BLOCK_K, COPIES)
    next_bias = _bias(bias, matrix, column, n, there, BLOCK_N) if BIAS else 0
    for s in gl.static_range(STAGES - 1):
        _ask_rows(x, pointers, first, rows, s, there, a, bars, s, X_DESCRIPTOR, COPIES)
    stage = gl.to_tensor(0)
    phase = gl.to_tensor(0)
    turn = 0
    while work < total:
        this = (pointers, first, rows, first_panel_row(matrix, column, n, k))
        acc = gl.zeros([BLOCK_N, BLOCK_M] if SWAPPED else [BLOCK_M, BLOCK_N], gl.float32, layout=SUMS)
        if BIAS:
            # Of this tile, asked for when the one before was done.
            if SWAPPED:
                acc = acc + gl.convert_layout(next_bias, gl.SliceLayout(1, SUMS))[:, None]
            else:
                acc = acc + gl.convert_layout(next_bias, gl.SliceLayout(0, SUMS))[None, :]
        turn += 1
        place = next_place(place, further, programs)
        pieces = (begun, box, programs, claim, in_step, begun_by_round(turn, programs, total))
        # A single warp group has rows of every tile.
        if SWAPPED or WARPS == 4 or _rows_from_own_on(gl.where(half_time, rows, BLOCK_M)) > 0:
            acc, stage, phase, work, pointers, next_matrix, next_first, next_rows, next_column = _product(
                acc, operands, this, walk, turn * programs + place, pieces, once, stage, phase,
                X_DESCRIPTOR, BLOCK_M, BLOCK_N, BLOCK_K, STAGES, COPIES, True,
            )  # fmt: skip
        else:
            acc, stage, phase, work, pointers, next_matrix, next_first, next_rows, next_column = _product(
                acc, operands, this, walk, turn * programs + place, pieces, once, stage, phase,
                X_DESCRIPTOR, BLOCK_M, BLOCK_N, BLOCK_K, STAGES, COPIES, False,
            )  # fmt: skip
        if BIAS:
            next_bias = _bias(bias, next_matrix, next_column, n, work < total, BLOCK_N)
        if GATED:
            if SWAPPED:
                acc = gl.convert_layout(acc.permute([1, 0]), TURNED)
            gate, value = acc.reshape([BLOCK_M, BLOCK_N // 2, 2]).split()
            result = join_gate(gate, value, code, linear, cubic, limit, shift, ACTIVATION)
            store_rows(out, result, first, rows, column // 2, width, out_pitch, keep)
        elif SWAPPED:
            store_rows(out, acc.permute([1, 0]), first, rows, column, width, out_pitch)
        else:
            left, right = acc.reshape([BLOCK_M, 2, BLOCK_N // 2]).permute([0, 2, 1]).split()
            store_rows(out, left, first, rows, column, width, out_pitch)
            store_rows(out, right, first, rows, column + BLOCK_N // 2, width, out_pitch)
        matrix, first, rows, column = next_matrix, next_first, next_rows, next_column
    if not X_DESCRIPTOR:
        async_copy.wait_group(0)
