"""One product of every expert on a work list: out[row] = f(x[source(row)] . w[expert]^T + bias).

Both products of an expert, and the dense product of a shared expert, are this kernel; tile
sizes make it the hot, the warm or the cold one. It is no router: which rows belong to which
expert is read from device memory, so one launch shape, and one captured graph, serves every
routing.

Layout. Weights are in panels of 64 columns, [matrices, k / 64, n, 64]: what a tile reads of a panel lies in one piece of
8 to 32 KiB in 16 bits each, where rows in one piece, [matrices, n, k], would make it 128 to 512 bytes at a pitch of kilobytes.
A ring of TMA reads, nothing multiplied (TB/s, n 28672, k 4096, 256 of n at a time): 2.90 of rows and 2.95 of panels on an
H100, 4.00 and 4.14 on an H200, each with the L2 promotion that suits it. n and k are multiples of 64 and the
padding is zero, so that no load of weights needs a mask and pads of the output come out as
f(0). A gated product interleaves its two matrices row by row (gate 0, value 0, gate 1, ...):
the two numbers that an activation joins then sit beside each other in one thread's registers.
Rows of x and out have a pitch, their width rounded up in the same way.

Persistent. The grid is the budget of multiprocessors, whatever the routing; program p takes
tiles p, p + programs, ... Tiles are numbered so that the row tiles of a group go through all columns
together: a group is of one expert, so its weights come from memory hardly more than once and are then found
in L2. Groups stand in the list (bucket.py); those of any eight neighbours began in the middle of experts, whose
weights were read again (by counters, of first products of 4096 tokens, 22 % more than there are for
qwen3-30b-a3b and 118 % for mixtral-8x7b; with these groups 14 % and 29 %). `flatten` makes one software
pipeline of all the tiles of a program: the next tile's loads are in flight while this tile's epilogue runs.

Mixed. A list has two parts, busy experts in front, and a walk over tiles of 128 rows goes through both at once (`mixed`),
so that what waits for memory and what waits for the tensor cores are under way side by side.

Early. Kernels that are not FLATTEN, those for low tiles among them, let the next one start with their last piece's product done,
and one that does not gather looks up its first tile before it waits for the kernel in front (overlap.py). Their way to the first
weights is short in other respects, too, as with few tokens every block goes it at the same time: 500 instructions, 2 us of
a step of 20, were divisions, loads that waited for each other, and the search for a next tile that there is not.

Bits. An output element is a sum over k in steps of BLOCK_K, in order, whatever the tile it is
in, its neighbours there, or the grid. So bits depend on the tile class and on nothing else.
"""

import triton
import triton.language as tl

from l2 import read_once
from overlap import begin, release, wait
from routing.bucket import GROUP_SHIFT

from .activation import activate, join_gate

# Bits of `options`, part of the ABI. (HALF_TIME, IN_STEP, CLAIM and KEEP: of many.py; BIAS_LAST: of packed.py.)
OPTIONS = {
    **{"gather": 1, "bias": 2, "input_scale": 4, "dense": 8, "half_time": 16, "in_step": 32, "claim": 64},
    **{"read_once": 128, "keep": 256, "bias_last": 512},
}
GATHER = tl.constexpr(OPTIONS["gather"])
BIAS = tl.constexpr(OPTIONS["bias"])
INPUT_SCALE = tl.constexpr(OPTIONS["input_scale"])
DENSE = tl.constexpr(OPTIONS["dense"])
HALF_TIME = tl.constexpr(OPTIONS["half_time"])
IN_STEP = tl.constexpr(OPTIONS["in_step"])
CLAIM = tl.constexpr(OPTIONS["claim"])
READ_ONCE = tl.constexpr(OPTIONS["read_once"])
KEEP = tl.constexpr(OPTIONS["keep"])
BIAS_LAST = tl.constexpr(OPTIONS["bias_last"])
# Columns of a panel of weights: 128 bytes in 16 bits each, the widest box of a tensor map that the tensor cores read.
PANEL = tl.constexpr(64)

# Pieces of busy experts that are next to each other in a walk through both parts of a list. Steps of 4096 tokens of DeepSeek-V3's
# shape on an H100 in runs of 32, 16 and 8: Zipf 1 8734, 8635 and 8505 us, Zipf 1.5 9012, 8867 and 8719; in runs of 4 the latter takes 2.6 %
# longer again, and 4096 tokens of olmoe-1b-7b and qwen3-30b-a3b up to 2.3 %. Elsewhere runs of 8 and 16 are within 1.3 %.
RUN = tl.constexpr(8)


@triton.jit
def mixed(work, total, busy):
    """Of a walk through both parts of a list, of `busy` and of total - busy pieces, which piece comes at place `work`.

    After every so many places a run of busy pieces begins, so that these and the others end at about the same time. (Of an
    empty list, which has no places, any number will do.)
    """
    period = tl.maximum(RUN * total // tl.maximum(busy, 1), 1)
    turn = work // period
    within = work - turn * period
    # Busy pieces in front of this place.
    before = tl.minimum(turn * RUN + tl.minimum(within, RUN), busy)
    return tl.where((within < RUN) & (before < busy), before, busy + work - before)


@triton.jit
def find_tile(
    work, walk, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MIXED: tl.constexpr, FIRST: tl.constexpr = False
):
    """(matrix, first row, rows, first column, whether it is alone) of a piece of work; no rows if there is no such piece.

    `walk` is what the whole launch goes through: pieces in all and of busy experts, columns of tiles, row tiles, and
    the list or, of a dense product, what there is instead.

    Pieces are numbered column after column through one group of row tiles after the other. A group has as many pieces as
    tiles times columns, so some tile of a piece's group is found by division. Alone is a tile that is a group by itself: no other
    reads its weights.

    FIRST: a program's first piece, for which every list has room. Its tile is asked for without waiting for how many there
    are (unless MIXED), and it is guessed to be the one that is found by division, which is right where groups are of one tile.
    """
    total, busy, columns, row_tiles, group, tiles, dense_matrix, dense_rows, dense = walk
    there = work < total
    if MIXED:
        work = mixed(work, total, busy)
    listed = dense == 0 if FIRST else there & (dense == 0)
    some = work // columns
    together = tl.load(tiles + 4 * some + 3, mask=listed, other=0)
    if FIRST:
        guessed_matrix = tl.load(tiles + 4 * some, mask=listed, other=0)
        guessed_first = tl.load(tiles + 4 * some + 1, mask=listed, other=0)
        guessed_rows = tl.load(tiles + 4 * some + 2, mask=listed, other=0)
    place = tl.where(listed, together & ((1 << GROUP_SHIFT) - 1), some % group)
    height = tl.where(listed, together >> GROUP_SHIFT, tl.minimum(row_tiles - some + place, group))
    height = tl.maximum(height, 1)
    within = work - (some - place) * columns
    tile = some - place + within % height
    column = (within // height) * BLOCK_N
    matrix, first, rows = dense_matrix, tile * BLOCK_M, tl.minimum(dense_rows - tile * BLOCK_M, BLOCK_M)
    if FIRST:
        matrix = tl.where(listed, guessed_matrix, matrix)
        first = tl.where(listed, guessed_first, first)
        rows = tl.where(listed, guessed_rows, rows)
        listed = listed & there & (tile != some)
    matrix = tl.load(tiles + 4 * tile, mask=listed, other=matrix)
    first = tl.load(tiles + 4 * tile + 1, mask=listed, other=first)
    rows = tl.load(tiles + 4 * tile + 2, mask=listed, other=rows)
    return matrix, first, tl.where(there, rows, 0), column, together == 1 << GROUP_SHIFT


@triton.jit
def first_panel_row(matrix, column, n, k):
    """Of all panels, one below the other, the row of a matrix's first panel that this column's weights are."""
    return matrix * (k // PANEL) * n + column


@triton.jit
def _sources(first, rows, order, top_k, gather, BLOCK_M: tl.constexpr):
    """Rows of x for the rows of a tile."""
    row = first + tl.arange(0, BLOCK_M)
    slot = tl.load(order + row, mask=(tl.arange(0, BLOCK_M) < rows) & (gather != 0), other=0)
    # slot // top_k by multiplication, as the first weights wait for what a division takes: with 2^32 / top_k rounded up,
    # a slot below 2^31 gives its token or the next one.
    reciprocal = 0xFFFFFFFF // top_k.to(tl.uint32) + 1
    token = tl.umulhi(slot.to(tl.uint32), reciprocal).to(tl.int32)
    token = tl.where(top_k == 1, slot, token - (token * top_k > slot).to(tl.int32))
    return tl.where(gather != 0, token, row)


@triton.jit
def project(
    x,  # [*, x_pitch]
    # Panels [matrices, k / 64, n, 64]: pointer, or tensor-map descriptor, of all panels' rows with blocks [BLOCK_N, 64] if a
    # step is a panel, else of four dimensions with blocks [1, BLOCK_K / 64, BLOCK_N, 64].
    w,
    bias,  # float32 [matrices, n], if BIAS (kernels with EXTRAS)
    out,  # [*, out_pitch]
    tiles,  # int32 [*, 4]: matrix, first row, rows, group (bucket.py); unless DENSE
    tile_count,  # int32 [2]: tiles on the list, and how many of them, in front, are of busy experts; if DENSE int32 [1]: rows
    order,  # int32 [*]: slot of each row, if GATHER or INPUT_SCALE
    input_scale,  # float32 [slots]: multiplies a row's product before bias and activation, if INPUT_SCALE (EXTRAS)
    n,
    k,
    x_pitch,
    out_pitch,
    top_k,  # if GATHER, a row's source is order[row] // top_k; otherwise the row itself
    dense_matrix,
    group,  # of a dense product: row tiles that go through the columns together
    options,
    code,  # of the activation, if ACTIVATION is CODED; the four numbers after it: activation.py
    linear,
    cubic,
    limit,
    shift,
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    EXTRAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    FLATTEN: tl.constexpr,
    MIXED: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    PARTS: tl.constexpr = 2 if GATED else 1
    tl.static_assert(DESCRIPTOR or PANEL % BLOCK_K == 0, "pointers stay in a panel")
    programs = tl.num_programs(0)
    columns = tl.cdiv(n, BLOCK_N)
    dense = options & DENSE
    gather = options & GATHER
    if DESCRIPTOR and not FLATTEN:
        # All of an expert's low tiles are under way at once (l2.py).
        read_once(options & READ_ONCE)
    if FLATTEN:
        begin(DEPENDENT)
    elif gather != 0:
        # Behind the kernel that writes the list and the order. One that does not gather starts early behind products only (the
        # host sees to that), or is dense and has no list.
        wait(DEPENDENT)
    dense_rows = tl.load(tile_count)
    row_tiles = tl.where(dense != 0, tl.cdiv(dense_rows, BLOCK_M), dense_rows)
    total = row_tiles * columns
    busy = tl.load(tile_count + 1, mask=dense == 0, other=0) * columns
    walk = (total, busy, columns, row_tiles, group, tiles, dense_matrix, dense_rows, dense)
    tile_rows = tl.arange(0, BLOCK_M)
    ks = tl.arange(0, BLOCK_K)
    steps = tl.cdiv(k, BLOCK_K)

    work = tl.program_id(0)
    matrix, first, rows, column, _ = find_tile(work, walk, BLOCK_M, BLOCK_N, MIXED, True)
    source = _sources(first, rows, order, top_k, gather, BLOCK_M)
    if not FLATTEN:
        wait(DEPENDENT)
    for work in tl.range(tl.program_id(0), total, programs, flatten=FLATTEN):
        if not FLATTEN:
            # What the next tile is, is asked for now and used after this tile's product: two dependent
            # loads of a microsecond that would otherwise stand between any two tiles. If there is none, nothing waits for it.
            next_matrix, next_first, next_rows, next_column = matrix, first, rows * 0, column
            if work + programs < total:
                next_matrix, next_first, next_rows, next_column, _ = find_tile(
                    work + programs, walk, BLOCK_M, BLOCK_N, MIXED
                )
        else:
            matrix, first, rows, column, _ = find_tile(work, walk, BLOCK_M, BLOCK_N, MIXED)
            source = _sources(first, rows, order, top_k, gather, BLOCK_M)
        valid = tile_rows < rows
        x_rows = x + source.to(tl.int64)[:, None] * x_pitch + ks[None, :]
        first_row = first_panel_row(matrix, column, n, k)
        if not DESCRIPTOR:
            # Past the last column: any rows will do, their products are never stored.
            n_rows = tl.minimum(column + tl.arange(0, BLOCK_N), n - 1)
            w_rows = w + matrix.to(tl.int64) * n * k + n_rows[:, None] * PANEL + ks[None, :]

        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for step in range(steps):
            at = step * BLOCK_K
            if BLOCK_K > PANEL:
                # k is a multiple of 64 only.
                a = tl.load(x_rows + at, mask=valid[:, None] & (at + ks < k)[None, :], other=0.0)
            else:
                a = tl.load(x_rows + at, mask=valid[:, None], other=0.0)
            if DESCRIPTOR and BLOCK_K > PANEL:
                b = w.load([matrix, step * (BLOCK_K // PANEL), column, 0])
                b = b.permute(0, 1, 3, 2).reshape(BLOCK_K, BLOCK_N)
            elif DESCRIPTOR:
                b = w.load([first_row + step * n, 0]).T
            else:
                b = tl.load(w_rows + (at // PANEL).to(tl.int64) * n * PANEL + at % PANEL).T
            acc = tl.dot(a, b, acc, input_precision=PRECISION)

        if not FLATTEN:
            next_source = source
            if work + programs < total:
                next_source = _sources(next_first, next_rows, order, top_k, gather, BLOCK_M)
            else:
                release(DEPENDENT)
        row = first + tile_rows
        if EXTRAS:
            # Masked loads, not branches: a branch over the accumulators makes ptxas wait for every single wgmma.
            scaled = valid & ((options & INPUT_SCALE) != 0)
            slot = tl.load(order + row, mask=scaled, other=0)
            acc = acc * tl.load(input_scale + slot, mask=scaled, other=1.0)[:, None]
            ns = column + tl.arange(0, BLOCK_N)
            acc = acc + tl.load(bias + matrix * n + ns, mask=(ns < n) & ((options & BIAS) != 0), other=0.0)[None, :]
        if GATED:
            gate, value = acc.reshape(BLOCK_M, BLOCK_N // 2, 2).split()
            result = join_gate(gate, value, code, linear, cubic, limit, shift, ACTIVATION)
        else:
            result = activate(acc, code, linear, cubic, ACTIVATION)
        result = result.to(out.dtype.element_ty)
        out_column = column // PARTS
        out_columns = out_column + tl.arange(0, BLOCK_N // PARTS)
        out_tile = out + row.to(tl.int64)[:, None] * out_pitch + out_columns[None, :]
        inside = valid[:, None] & (out_columns < n // PARTS)[None, :]
        tl.store(out_tile, result, mask=inside)
        if not FLATTEN:
            matrix, first, rows, column, source = next_matrix, next_first, next_rows, next_column, next_source
