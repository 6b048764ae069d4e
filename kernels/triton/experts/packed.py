"""The products of many.py on weights of 12 bits (packed_words.py), on sm_90: the same numbers from three quarters of the bytes.

Up to 1024 tokens or so products wait for weights, so less time means fewer bytes. What is multiplied is the same, in the same
order, so bits are those of plain weights. Weights are the first operand, out^T = w . x^T, whatever the height of tiles: only that
one can come from registers, in which weights are expanded.

Four warps ask (packed_ask.py): they walk through the pieces of a program, and for each step ask for a panel's words by TMA, a
copy a plane, and for rows of x by TMA or, gathered, by ordinary asynchronous copies, as soon as a stage is free. Two or four warp groups
expand and multiply a share each of a piece's columns, in one block of 64 or two, and know nothing of each other, so that one expands
while another multiplies. A group looks up the next step's words while the tensor cores have this step's weights. Four have registers for
low tiles only, and more to do meanwhile when one waits.

What a piece is the asking warps tell the others in `box`, before the barrier of its first step: its matrix, first row, rows and
block of columns; no rows: that was all. An entry is read before its stage is free again, and there are more entries than stages.

Patches are few: of normally distributed weights six in 100,000 need one, so in a step one group of 16 rows in 16 has any. A warp
looks at the flags of its own 16 rows, 32 steps at a time, and asks for a step's patches one step before. These numbers differ
between warps, which Gluon's scalars do not know, and need not.

Parameters are many.py's, as far as they go; `w` is a tensor map over words. Sums begin with a bias, as many.py's do, or end with it
if the options say so, as grouped.py's do: which of these would multiply plain weights decides. What is left to other kernels:
dense products, input scales, activations by a code.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, warpgroup_mma, warpgroup_mma_wait

from overlap import begin

from .activation import join_gate
from .grouped import BIAS_LAST, KEEP, PANEL
from .many import store_rows
from .packed_ask import BOX, WARPS, ask, next_stage, prefetch, told
from .packed_words import (
    BLOCK_ROWS,
    FLAG_BITS,
    GROUP_ROWS,
    PLANE_COLUMNS,
    PLANE_ROWS,
    PLANES,
    RECORDS,
    halves,
    operand,
    patched,
    plain_row,
)


@gluon.jit
def _warp(zero):
    """Which warp of its warp group this is: a number that differs between warps."""
    return gl.inline_asm_elementwise(
        "{ .reg .b32 warp; mov.u32 warp, %tid.x; shr.u32 warp, warp, 5; and.b32 warp, warp, 3; add.u32 $0, warp, $1; }",
        "=r,r",
        [zero],
        dtype=gl.int32,
        is_pure=True,
        pack=1,
    )


@gluon.jit
def _flags_of(flags, patches, groups, word, step, flag_words, inside, BLOCKS: gl.constexpr):
    """Flags of a warp's groups, 32 bits for each block, of which the lowest is this panel's; and if any has patches in it.

    The L2 is asked for the patches of all 32 panels at once, a lane for each.
    """
    # What comes in at a word's end is gone when it comes to its beginning.
    word = word >> 1
    if step % FLAG_BITS == 0:
        at = flags + step // FLAG_BITS
        lane = gl.arange(0, FLAG_BITS, layout=gl.BlockedLayout([1], [32], [WARPS], [0]))
        ahead = patches + (step + lane).to(gl.int64) * groups * RECORDS
        word = gl.load(at, mask=inside > 0, other=0)
        prefetch(ahead, (word >> lane) & 1)
        if BLOCKS == 2:
            second = gl.load(at + BLOCK_ROWS // GROUP_ROWS * flag_words, mask=inside > BLOCK_ROWS, other=0)
            prefetch(ahead + BLOCK_ROWS // GROUP_ROWS * RECORDS, (second >> lane) & 1)
            word = (second.to(gl.int64) << FLAG_BITS) | (word.to(gl.int64) & 0xFFFFFFFF)
    if BLOCKS == 2:
        flag = (word & ((1 << FLAG_BITS) | 1)) != 0
    else:
        flag = (word & 1) != 0
    return word, flag


@gluon.jit
def _patches_of(records, patches, step, groups, flag, inside, BLOCKS: gl.constexpr):
    """A panel's patches of a warp's groups, if there are any; else what was there. Four to a number, two numbers a group."""
    if flag:
        at = patches + step.to(gl.int64) * groups * RECORDS
        first, second, third, fourth = records
        first = gl.load(at, mask=inside > 0, other=0)
        second = gl.load(at + 1, mask=inside > 0, other=0)
        if BLOCKS == 2:
            at += BLOCK_ROWS // GROUP_ROWS * RECORDS
            third = gl.load(at, mask=inside > BLOCK_ROWS, other=0)
            fourth = gl.load(at + 1, mask=inside > BLOCK_ROWS, other=0)
        records = first, second, third, fourth
    return records


@gluon.jit
def _filled(filled, stage, phase, X_DESCRIPTOR: gl.constexpr):
    """Waits until a stage's operands are there."""
    mbarrier.wait(filled.index(stage), phase)
    if not X_DESCRIPTOR:
        # What ordinary copies wrote is read by the tensor cores.
        fence_async_shared()


@gluon.jit
def _block(b, stage, block, flag, first, second):
    """A step's weights of one of its blocks."""
    words = halves((
        b.index(stage * PLANES).slice(block, 1),
        b.index(stage * PLANES + 1).slice(block, 1),
        b.index(stage * PLANES + 2).slice(block, 1),
    ))  # fmt: skip
    if flag:
        words = patched(patched(words, first), second)
    return words


@gluon.jit
def _weights(b, stage, flag, records, GROUP: gl.constexpr, BLOCKS: gl.constexpr):
    """A step's weights of a warp group."""
    first, second, third, fourth = records
    words = _block(b, stage, GROUP * BLOCKS, flag, first, second)
    others = _block(b, stage, GROUP * BLOCKS + 1, flag, third, fourth) if BLOCKS == 2 else 0
    return words, others


@gluon.jit
def _bias(bias, scale, last, there):
    """(what sums, without their scale, begin with; what is added to them at the end)"""
    bias = gl.load(bias, mask=there, other=0.0)
    last = last | (scale == 0)
    return gl.where(last, 0.0, bias / gl.where(scale == 0, 1.0, scale)), gl.where(last, bias, 0.0)


@gluon.jit
def _issued(sums, more, weights, rows, SUMS: gl.constexpr, BLOCKS: gl.constexpr):
    """Issues a step's products."""
    rows = rows.permute((1, 0))
    first, second = weights
    a = operand(first, SUMS)
    if BLOCKS == 2:
        b = operand(second, SUMS)
        sums = warpgroup_mma(a, rows, sums, is_async=True)
        more = warpgroup_mma(b, rows, more, is_async=True)
    else:
        sums = warpgroup_mma(a, rows, sums, is_async=True)
    return sums, more


@gluon.jit
def _finished(sums, more, free, stage, BLOCKS: gl.constexpr):
    """Waits for a step's products, and says that its stage is free."""
    if BLOCKS == 2:
        sums, more = warpgroup_mma_wait(0, deps=[sums, more])
    else:
        sums = warpgroup_mma_wait(0, deps=[sums])
    # All warps have read it.
    gl.thread_barrier()
    mbarrier.arrive(free.index(stage), count=1)
    return sums, more


@gluon.jit
def _store(
    sums, scale, bias, column, tile, output, activation, GATED: gl.constexpr, ACTIVATION: gl.constexpr, BIAS: gl.constexpr
):
    """Stores a block's results, as far as there are columns. Of its rows of weights `scale`, and `bias` that sums did not begin with."""
    first, rows = tile
    out, width, out_pitch, keep = output
    BLOCK_M: gl.constexpr = sums.shape[1]
    # A row of zeros: whatever its words are.
    sums = gl.where((scale == 0)[:, None], 0.0, sums * scale[:, None])
    if BIAS:
        sums = sums + bias[:, None]
    # From the order of the first operand's rows to that of columns.
    sums = sums.reshape([BLOCK_ROWS // GROUP_ROWS, 2, GROUP_ROWS // 2, BLOCK_M])
    if GATED:
        code, linear, cubic, limit, shift = activation
        gate, value = sums.permute([0, 2, 3, 1]).split()
        result = join_gate(gate, value, code, linear, cubic, limit, shift, ACTIVATION)
        result = result.reshape([BLOCK_ROWS // 2, BLOCK_M]).permute([1, 0])
        store_rows(out, result, first, rows, column // 2, width, out_pitch, keep)
    else:
        result = sums.permute([0, 2, 1, 3]).reshape([BLOCK_ROWS, BLOCK_M]).permute([1, 0])
        store_rows(out, result, first, rows, column, width, out_pitch)


@gluon.jit
def _multiply(
    product, activation, buffers,
    GROUP: gl.constexpr, GATED: gl.constexpr, ACTIVATION: gl.constexpr, BIAS: gl.constexpr, X_DESCRIPTOR: gl.constexpr,
    BLOCK_M: gl.constexpr, BLOCKS: gl.constexpr, STAGES: gl.constexpr, DEPENDENT: gl.constexpr,
):  # fmt: skip
    """What a warp group does that expands and multiplies."""
    if X_DESCRIPTOR:
        # Those that ask wait later: what is multiplied comes after that.
        begin(DEPENDENT)
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BLOCK_M, 16])
    ROWS: gl.constexpr = gl.SliceLayout(1, SUMS)
    scales, flags, patches, bias, out, n, k, out_pitch, options = product
    a, b, filled, free, box = buffers
    steps = k // PANEL
    groups = n // GROUP_ROWS
    flag_words = gl.cdiv(steps, FLAG_BITS)
    bias_last = (options & BIAS_LAST) != 0
    output = (out, n // 2 if GATED else n, out_pitch, (options & KEEP) != 0)
    stage = gl.to_tensor(0)
    phase = gl.to_tensor(0)
    turn = 0
    _filled(filled, 0, 0, X_DESCRIPTOR)
    matrix, first, rows, block = told(box, 0)
    while rows > 0:
        # Told in blocks, so that it is known to be a multiple: stores are of 16 bytes.
        column = (block + GROUP * BLOCKS) * BLOCK_ROWS
        # A piece may go on beyond the last column, by whole blocks.
        inside = n - column
        row = matrix * n + column + plain_row(gl.arange(0, BLOCK_ROWS, layout=ROWS))
        scale = gl.load(scales + row, mask=inside > 0, other=0.0)
        second_scale = scale
        if BLOCKS == 2:
            second_scale = gl.load(scales + BLOCK_ROWS + row, mask=inside > BLOCK_ROWS, other=0.0)
        group = column // GROUP_ROWS + _warp(0)
        flags_there = flags + (matrix * groups + group) * flag_words
        patches_there = patches + (matrix.to(gl.int64) * steps * groups + group) * RECORDS
        none = gl.to_tensor(0).to(gl.int64)
        word = none if BLOCKS == 2 else gl.to_tensor(0)
        word, flag = _flags_of(flags_there, patches_there, groups, word, gl.to_tensor(0), flag_words, inside, BLOCKS)
        records = _patches_of((none, none, none, none), patches_there, gl.to_tensor(0), groups, flag, inside, BLOCKS)
        sums = gl.zeros([BLOCK_ROWS, BLOCK_M], gl.float32, layout=SUMS)
        more = sums if BLOCKS == 2 else 0
        biases = scale
        second_biases = scale
        if BIAS:
            begun, biases = _bias(bias + row, scale, bias_last, inside > 0)
            sums = sums + begun[:, None]
            if BLOCKS == 2:
                begun, second_biases = _bias(bias + BLOCK_ROWS + row, second_scale, bias_last, inside > BLOCK_ROWS)
                more = more + begun[:, None]
        weights = _weights(b, stage, flag, records, GROUP, BLOCKS)
        for i in range(1, steps):
            sums, more = _issued(sums, more, weights, a.index(stage), SUMS, BLOCKS)
            word, flag = _flags_of(flags_there, patches_there, groups, word, i, flag_words, inside, BLOCKS)
            records = _patches_of(records, patches_there, i, groups, flag, inside, BLOCKS)
            next_stage, next_phase = next_stage(stage, phase, STAGES)
            _filled(filled, next_stage, next_phase, X_DESCRIPTOR)
            # While this step's are multiplied.
            weights = _weights(b, next_stage, flag, records, GROUP, BLOCKS)
            sums, more = _finished(sums, more, free, stage, BLOCKS)
            stage, phase = next_stage, next_phase
        sums, more = _issued(sums, more, weights, a.index(stage), SUMS, BLOCKS)
        sums, more = _finished(sums, more, free, stage, BLOCKS)
        stage, phase = next_stage(stage, phase, STAGES)

        tile = (first, rows)
        _store(sums, scale, biases, column, tile, output, activation, GATED, ACTIVATION, BIAS)
        if BLOCKS == 2:
            beside = column + BLOCK_ROWS
            _store(more, second_scale, second_biases, beside, tile, output, activation, GATED, ACTIVATION, BIAS)
        turn += 1
        _filled(filled, stage, phase, X_DESCRIPTOR)
        matrix, first, rows, block = told(box, turn)


@gluon.jit
def project_packed(
    x,
    w,
    scales,
    flags,
    patches,
    bias,
    out,
    tiles,
    tile_count,
    order,
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
    GATED: gl.constexpr,
    ACTIVATION: gl.constexpr,
    BIAS: gl.constexpr,
    X_DESCRIPTOR: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    GROUPS: gl.constexpr,
    STAGES: gl.constexpr,
    MULTIPLYING_REGISTERS: gl.constexpr,
    ASKING_REGISTERS: gl.constexpr,
    DEPENDENT: gl.constexpr,
):
    BLOCKS: gl.constexpr = BLOCK_N // BLOCK_ROWS // GROUPS
    gl.static_assert(GROUPS == 2 or GROUPS == 4, "two warp groups that multiply or four")
    gl.static_assert(BLOCKS == 1 or BLOCKS == 2, "a warp group has one block of 64 columns or two")
    gl.static_assert(STAGES < BOX, "an entry of the box is read before it is written again")
    ELEMENT: gl.constexpr = out.dtype.element_ty
    A: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_M, PANEL], ELEMENT)
    B: gl.constexpr = gl.NVMMASharedLayout(128, 32, 4)
    a = gl.allocate_shared_memory(ELEMENT, [STAGES, BLOCK_M, PANEL], A)
    b = gl.allocate_shared_memory(gl.int32, [STAGES * PLANES, BLOCK_N // BLOCK_ROWS, 1, PLANE_ROWS, PLANE_COLUMNS], B)
    filled = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    box = gl.allocate_shared_memory(gl.int32, [BOX, 4], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    # Whoever tells the barrier what comes by TMA arrives, and each thread once its gathered rows are there.
    ARRIVALS: gl.constexpr = 1 if X_DESCRIPTOR else 1 + 32 * WARPS
    for s in gl.static_range(STAGES):
        mbarrier.init(filled.index(s), count=ARRIVALS)
        mbarrier.init(free.index(s), count=GROUPS)
    fence_async_shared()
    gl.thread_barrier()
    if not X_DESCRIPTOR:
        begin(DEPENDENT)
    buffers = (a, b, filled, free, box)
    product = (scales, flags, patches, bias, out, n, k, out_pitch, options)
    walked = (tiles, tile_count, order, n, k, top_k, options)
    activation = (code, linear, cubic, limit, shift)
    # What is first is Triton's default partition, which has the registers that are left.
    if GROUPS == 4:
        gl.warp_specialize(
            [
                (ask, (x, w, x_pitch, product, walked, buffers, X_DESCRIPTOR, BLOCK_M, BLOCK_N, STAGES, DEPENDENT)),
                (_multiply, (product, activation, buffers, 0, GATED, ACTIVATION, BIAS, X_DESCRIPTOR, BLOCK_M, BLOCKS, STAGES, DEPENDENT)),
                (_multiply, (product, activation, buffers, 1, GATED, ACTIVATION, BIAS, X_DESCRIPTOR, BLOCK_M, BLOCKS, STAGES, DEPENDENT)),
                (_multiply, (product, activation, buffers, 2, GATED, ACTIVATION, BIAS, X_DESCRIPTOR, BLOCK_M, BLOCKS, STAGES, DEPENDENT)),
                (_multiply, (product, activation, buffers, 3, GATED, ACTIVATION, BIAS, X_DESCRIPTOR, BLOCK_M, BLOCKS, STAGES, DEPENDENT)),
            ],
            [WARPS, WARPS, WARPS, WARPS],
            [MULTIPLYING_REGISTERS, MULTIPLYING_REGISTERS, MULTIPLYING_REGISTERS, MULTIPLYING_REGISTERS],
        )
    elif X_DESCRIPTOR:
        gl.warp_specialize(
            [
                (_multiply, (product, activation, buffers, 0, GATED, ACTIVATION, BIAS, X_DESCRIPTOR, BLOCK_M, BLOCKS, STAGES, DEPENDENT)),
                (_multiply, (product, activation, buffers, 1, GATED, ACTIVATION, BIAS, X_DESCRIPTOR, BLOCK_M, BLOCKS, STAGES, DEPENDENT)),
                (ask, (x, w, x_pitch, product, walked, buffers, X_DESCRIPTOR, BLOCK_M, BLOCK_N, STAGES, DEPENDENT)),
            ],
            [WARPS, WARPS],
            [MULTIPLYING_REGISTERS, ASKING_REGISTERS],
        )
    else:
        # Those that ask are first: parameters take them no registers then, of which they have too few to gather rows with.
        gl.warp_specialize(
            [
                (ask, (x, w, x_pitch, product, walked, buffers, X_DESCRIPTOR, BLOCK_M, BLOCK_N, STAGES, DEPENDENT)),
                (_multiply, (product, activation, buffers, 0, GATED, ACTIVATION, BIAS, X_DESCRIPTOR, BLOCK_M, BLOCKS, STAGES, DEPENDENT)),
                (_multiply, (product, activation, buffers, 1, GATED, ACTIVATION, BIAS, X_DESCRIPTOR, BLOCK_M, BLOCKS, STAGES, DEPENDENT)),
            ],
            [WARPS, WARPS],
            [MULTIPLYING_REGISTERS, MULTIPLYING_REGISTERS],
        )
