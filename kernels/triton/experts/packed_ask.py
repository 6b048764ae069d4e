"""What the asking warps of packed.py do: they walk through a program's pieces and ask for the operands of every step.

They tell the others which piece it is (`box`), and wait for nothing but free stages, in second products for the kernel in front and, where
programs go in step, for other programs (pieces.py). What is next is asked for some steps ahead, as in many.py. So is what is first: all
stages' words in a row, in second products before the kernel in front is done.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy, mbarrier, tma

from l2 import read_once
from overlap import begin
from routing.bucket import BEGUN

from .grouped import CLAIM, GATHER, IN_STEP, PANEL, READ_ONCE, find_tile
from .many import CLAIMED, FOUND, LOOKED_UP, slots_of
from .packed_words import BLOCK_ROWS, FLAG_BITS, GROUP_ROWS, PLANE_COLUMNS, PLANE_ROWS, PLANES, RECORDS
from .pieces import ask_for_claim, begun_by_round, claimed_piece, next_place, wait_for

# Warps of a group, whichever it is: those that ask, and each that multiplies.
WARPS = gl.constexpr(4)
# Entries of the box: more than stages.
BOX = gl.constexpr(8)
# All of an entry in each thread.
ENTRY = gl.constexpr(gl.BlockedLayout([4], [32], [WARPS.value], [0]))


@gluon.jit
def tell(box, turn, matrix, first, rows, block):
    """Tells the warps that multiply which piece is the program's next; no rows: there is none."""
    i = gl.arange(0, 4, layout=ENTRY)
    box.index(turn % BOX).store(gl.where(i == 0, matrix, gl.where(i == 1, first, gl.where(i == 2, rows, block))))


@gluon.jit
def told(box, turn):
    """What was told of a program's piece: its matrix, first row, rows and block of columns."""
    i = gl.arange(0, 4, layout=ENTRY)
    entry = box.index(turn % BOX).load(ENTRY)
    return (
        gl.sum(gl.where(i == 0, entry, 0), axis=0),
        gl.sum(gl.where(i == 1, entry, 0), axis=0),
        gl.sum(gl.where(i == 2, entry, 0), axis=0),
        gl.sum(gl.where(i == 3, entry, 0), axis=0),
    )


@gluon.jit
def prefetch(at, wanted):
    """Asks the L2 for what is there where it is wanted (not 0)."""
    gl.inline_asm_elementwise(
        "{ .reg .pred wanted; setp.ne.s32 wanted, $2, 0; @wanted prefetch.global.L2 [$1]; mov.u32 $0, 0; }",
        "=r,l,r",
        [at.to(gl.int64, bitcast=True), wanted.to(gl.int32)],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


# Bytes from one prefetch to the next.
PREFETCH_STRIDE = gl.constexpr(64)


@gluon.jit
def _ask_ahead(product, matrix, column, there, BLOCK_N: gl.constexpr):
    """Asks the L2 for what those that multiply read of a piece before its first step: scales, flags, and the first panel's patches."""
    scales, flags, patches, bias, out, n, k, out_pitch, options = product
    i = gl.arange(0, 32 * WARPS, layout=gl.BlockedLayout([1], [32], [WARPS], [0]))
    groups = n // GROUP_ROWS
    steps = k // PANEL
    flag_words = gl.cdiv(steps, FLAG_BITS)
    group = column // GROUP_ROWS
    columns = gl.minimum(n - column, BLOCK_N)
    own_groups = columns // GROUP_ROWS
    number: gl.constexpr = PREFETCH_STRIDE // 4
    prefetch(scales + matrix * n + column + i * number, there & (i * number < columns))
    prefetch(flags + (matrix * groups + group) * flag_words + i * number, there & (i * number < own_groups * flag_words))
    record: gl.constexpr = PREFETCH_STRIDE // 8
    first = patches + (matrix.to(gl.int64) * steps * groups + group) * RECORDS
    prefetch(first + i * record, there & (i * record < own_groups * RECORDS))


@gluon.jit
def next_stage(stage, phase, STAGES: gl.constexpr):
    stage = gl.where(stage == STAGES - 1, 0, stage + 1)
    return stage, gl.where(stage == 0, phase ^ 1, phase)


@gluon.jit
def _sources(first, slots, top_k, gather, BLOCK_M: gl.constexpr, LAYOUT: gl.constexpr):
    """Rows of x for a tile's rows. Where they are is worked out in every step, as addresses would take twice the registers."""
    row = first + gl.arange(0, BLOCK_M, layout=gl.SliceLayout(1, LAYOUT))
    return gl.where(gather != 0, slots // top_k, row)


@gluon.jit
def _ask_words(step, stage, operands, tile, X_DESCRIPTOR: gl.constexpr):
    """Asks for a step's words, and tells the stage's barrier all that comes by TMA. `tile`: as for `_ask_steps`."""
    x, x_pitch, w, blocks, buffers = operands
    block, sources, first, rows = tile
    a, b, filled, free, box = buffers
    word_bytes: gl.constexpr = PLANES * b.shape[1] * PLANE_ROWS * PLANE_COLUMNS * 4
    row_bytes: gl.constexpr = a.shape[1] * a.shape[2] * 2 if X_DESCRIPTOR else 0
    mbarrier.expect(filled.index(stage), word_bytes + row_bytes)
    for plane in gl.static_range(PLANES):
        words = b.index(stage * PLANES + plane)
        tma.async_copy_global_to_shared(w, [block + step * blocks, plane, 0, 0], filled.index(stage), words)


@gluon.jit
def _ask_rows(step, stage, operands, tile, X_DESCRIPTOR: gl.constexpr, COPIES: gl.constexpr):
    """Asks for a step's rows of x."""
    x, x_pitch, w, blocks, buffers = operands
    block, sources, first, rows = tile
    a, b, filled, free, box = buffers
    if X_DESCRIPTOR:
        tma.async_copy_global_to_shared(x, [first, step * PANEL], filled.index(stage), a.index(stage))
    else:
        r = gl.arange(0, a.shape[1], layout=gl.SliceLayout(1, COPIES))
        ks = step * PANEL + gl.arange(0, PANEL, layout=gl.SliceLayout(0, COPIES))
        at = x + sources.to(gl.int64)[:, None] * x_pitch + ks[None, :]
        async_copy.async_copy_global_to_shared(a.index(stage), at, mask=(r < rows)[:, None])
        async_copy.mbarrier_arrive(filled.index(stage), increment_count=False)


@gluon.jit
def _ask_steps(
    from_step, to_step, operands, tile, stage, phase, STAGES: gl.constexpr, X_DESCRIPTOR: gl.constexpr, COPIES: gl.constexpr
):
    """Asks for words and rows of a tile's steps, each once a stage is free.

    `tile`: its first block of all blocks of words, where its rows of x are, its first row and its rows.
    """
    free = operands[4][3]
    for step in range(from_step, to_step):
        mbarrier.wait(free.index(stage), phase ^ 1)
        _ask_words(step, stage, operands, tile, X_DESCRIPTOR)
        _ask_rows(step, stage, operands, tile, X_DESCRIPTOR, COPIES)
        stage, phase = next_stage(stage, phase, STAGES)
    return stage, phase


@gluon.jit
def ask(
    x, w, x_pitch, product, walked, buffers,
    X_DESCRIPTOR: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, DEPENDENT: gl.constexpr,
):  # fmt: skip
    """What the asking warps do."""
    tiles, tile_count, order, n, k, top_k, options = walked
    COPIES: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [WARPS, 1], [1, 0])
    a, b, filled, free, box = buffers
    claims = gl.allocate_shared_memory(gl.int32, [32 * WARPS], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    programs = gl.num_programs(0)
    columns = gl.cdiv(n, BLOCK_N)
    gather = options & GATHER
    row_tiles = gl.load(tile_count)
    total = row_tiles * columns
    busy = gl.load(tile_count + 1) * columns
    walk = (total, busy, columns, row_tiles, 1, tiles, 0, 0, 0)
    steps = k // PANEL
    blocks = n // BLOCK_ROWS
    operands = (x, x_pitch, w, blocks, buffers)
    claim = (options & CLAIM) != 0
    in_step = (options & IN_STEP) != 0
    once = options & READ_ONCE
    begun = tile_count + (BEGUN + 1 if X_DESCRIPTOR else BEGUN)
    further = gl.where(busy > 0, 1, 0)
    claimed_at = gl.maximum(steps - CLAIMED, 0)
    looked_up = gl.maximum(steps - LOOKED_UP, 0)
    found = gl.maximum(steps - FOUND, 0)

    place = gl.program_id(0)
    work = place
    matrix, first, rows, column, alone = find_tile(work, walk, BLOCK_M, BLOCK_N, True)
    _ask_ahead(product, matrix, column, work < total, BLOCK_N)
    sources = 0
    if not X_DESCRIPTOR:
        slots = slots_of(first, rows, order, gather, BLOCK_M, COPIES)
        sources = _sources(first, slots, top_k, gather, BLOCK_M, COPIES)
    tile = (matrix * steps * blocks + column // BLOCK_ROWS, sources, first, rows)
    if work < total:
        tell(box, 0, matrix, first, rows, column // BLOCK_ROWS)
    read_once(gl.where(alone, once, 0))
    asked = gl.where(work < total, gl.minimum(steps, STAGES), 0)
    for step in range(0, asked):
        _ask_words(step, step, operands, tile, X_DESCRIPTOR)
    if X_DESCRIPTOR:
        # The list and the weights do not depend on the kernel in front.
        begin(DEPENDENT)
    for step in range(0, asked):
        _ask_rows(step, step, operands, tile, X_DESCRIPTOR, COPIES)
    stage = gl.where(asked == STAGES, 0, asked)
    phase = gl.where(asked == STAGES, 1, 0)
    turn = 0
    while work < total:
        turn += 1
        place = next_place(place, further, programs)
        dealt = turn * programs + place
        wait = in_step & (dealt < total)
        tile = (matrix * steps * blocks + column // BLOCK_ROWS, sources, first, rows)
        stage, phase = _ask_steps(asked, claimed_at, operands, tile, stage, phase, STAGES, X_DESCRIPTOR, COPIES)
        number = ask_for_claim(begun, claim)
        asked = gl.maximum(asked, claimed_at)
        stage, phase = _ask_steps(asked, looked_up, operands, tile, stage, phase, STAGES, X_DESCRIPTOR, COPIES)
        work = gl.where(claim, claimed_piece(number, claims, begun, claim, programs, total), dealt)
        next_matrix, next_first, next_rows, next_column, alone = find_tile(work, walk, BLOCK_M, BLOCK_N, True)
        _ask_ahead(product, next_matrix, next_column, work < total, BLOCK_N)
        asked = gl.maximum(asked, looked_up)
        stage, phase = _ask_steps(asked, found, operands, tile, stage, phase, STAGES, X_DESCRIPTOR, COPIES)
        if not X_DESCRIPTOR:
            slots = slots_of(next_first, next_rows, order, gather, BLOCK_M, COPIES)
        if wait:
            gl.atomic_add(begun, 1, sem="relaxed")
        asked = gl.maximum(asked, found)
        stage, phase = _ask_steps(asked, steps, operands, tile, stage, phase, STAGES, X_DESCRIPTOR, COPIES)
        matrix, first, rows, column = next_matrix, next_first, next_rows, next_column
        if not X_DESCRIPTOR:
            sources = _sources(first, slots, top_k, gather, BLOCK_M, COPIES)
        if wait:
            wait_for(begun, begun_by_round(turn, programs, total))
        if work < total:
            tell(box, turn, matrix, first, rows, column // BLOCK_ROWS)
        read_once(gl.where(alone, once, 0))
        asked = asked * 0
    # That was all.
    mbarrier.wait(free.index(stage), phase ^ 1)
    tell(box, turn, 0, 0, 0, 0)
    if not X_DESCRIPTOR:
        async_copy.mbarrier_arrive(filled.index(stage), increment_count=False)
    mbarrier.arrive(filled.index(stage), count=1)
