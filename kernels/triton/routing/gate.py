"""Router and shared-expert gates: out[t, e] = f(x[t] . w[e] + bias[e]), in float32 from the product on.

Gates decide, so nothing is rounded on the way: products are exact, sums are in float32, and what comes out is float32
without gaps, as route.py reads it. A gate is one matrix and every token goes through it, so there is no work list and
no budget of multiprocessors: the grid covers the output. It is no expert product; grouped.py is for those.

Gates are small, 1 to 1024 columns, so time is how soon the bytes are here, and what helps depends on how many outputs the
tokens have in all:

- up to some thousand, `gate_few`: a program for every output, the whole of k ahead of it. Hundreds of programs ask for their
  few kilobytes at the same time.
- more, `gate`: tiles on the tensor cores, small ones (of which there are many, to use many multiprocessors, and which ask for a
  quarter of a row at a time) at first, larger ones (which read everything fewer times) beyond.

Weights are those of the rows, or float32 with rows of any type. bfloat16 rows with float32 weights stay on the tensor
cores: a float32 is the sum of three bfloat16s, 8 bits of the 24 each, and each part's product with a bfloat16 is exact
in float32. Other pairs with float32 weights take ordinary float32 arithmetic.

Layout as in grouped.py, but for the weights: w is [n, k], rows in one piece, with n and k padded to multiples of 64 by zeros.
"""

import triton
import triton.language as tl

# Bits of `options`, part of the ABI.
OPTIONS = {"bias": 1, "sigmoid": 2}
BIAS = tl.constexpr(OPTIONS["bias"])
SIGMOID = tl.constexpr(OPTIONS["sigmoid"])


@triton.jit
def gate_few(
    x,  # [tokens, x_pitch]
    w,  # [padded n, k]
    bias,  # float32 [padded n], if BIAS
    out,  # float32 [tokens, n]
    tokens,  # int32 [1]
    n,
    k,
    x_pitch,
    options,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Program (e, t): output e of token t."""
    column = tl.program_id(0)
    token = tl.program_id(1)
    # Not waited for before the loads: rows past the tokens are there, if not of use.
    live = token < tl.load(tokens)
    ks = tl.arange(0, BLOCK_K)
    x_row = x + token.to(tl.int64) * x_pitch
    w_row = w + column * k
    partial = tl.zeros((BLOCK_K,), dtype=tl.float32)
    for start in tl.range(0, k, BLOCK_K, num_stages=STAGES):
        inside = start + ks < k
        a = tl.load(x_row + start + ks, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(w_row + start + ks, mask=inside, other=0.0).to(tl.float32)
        partial += a * b
    total = tl.sum(partial, axis=0)
    if (options & BIAS) != 0:
        total += tl.load(bias + column)
    if (options & SIGMOID) != 0:
        total = tl.sigmoid(total)
    tl.store(out + token.to(tl.int64) * n + column, total, mask=live)


@triton.jit
def _exact(a, b, acc):
    """acc + a b, of bfloat16 a and float32 b, by tensor cores: b in three parts, the smallest first."""
    high = b.to(tl.bfloat16)
    rest = b - high.to(tl.float32)
    middle = rest.to(tl.bfloat16)
    low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
    acc = tl.dot(a, low, acc)
    acc = tl.dot(a, middle, acc)
    return tl.dot(a, high, acc)


@triton.jit
def gate(
    x,  # [tokens, x_pitch]
    w,  # [padded n, k]
    bias,  # float32 [padded n], if BIAS
    out,  # float32 [tokens, n]
    tokens,  # int32 [1]
    n,
    k,
    x_pitch,
    options,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Program (i, j): outputs from BLOCK_N * i on of the tokens from BLOCK_M * j on. BLOCK_N divides 64."""
    first = tl.program_id(1) * BLOCK_M
    live_tokens = tl.load(tokens)
    if first >= live_tokens:
        return
    row = first + tl.arange(0, BLOCK_M)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = row < live_tokens
    ks = tl.arange(0, BLOCK_K)
    x_rows = x + row.to(tl.int64)[:, None] * x_pitch + ks[None, :]
    w_columns = w + column[None, :] * k + ks[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in tl.range(0, k, BLOCK_K, num_stages=STAGES):
        if BLOCK_K > 64:
            # k is a multiple of 64 only.
            inside = start + ks < k
            a = tl.load(x_rows + start, mask=live[:, None] & inside[None, :], other=0.0)
            b = tl.load(w_columns + start, mask=inside[:, None], other=0.0)
        else:
            a = tl.load(x_rows + start, mask=live[:, None], other=0.0)
            b = tl.load(w_columns + start)
        if a.dtype == b.dtype:
            acc = tl.dot(a, b, acc, input_precision="ieee")
        elif a.dtype == tl.bfloat16:
            acc = _exact(a, b, acc)
        else:
            acc = tl.dot(a.to(tl.float32), b, acc, input_precision="ieee")
    if (options & BIAS) != 0:
        acc += tl.load(bias + column)[None, :]
    if (options & SIGMOID) != 0:
        acc = tl.sigmoid(acc)
    there = out + row.to(tl.int64)[:, None] * n + column[None, :]
    tl.store(there, acc, mask=live[:, None] & (column < n)[None, :])
