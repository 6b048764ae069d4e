"""How long the L2 keeps what kernels read and write: weights no longer than they are needed, rows until they have been read.

What happens else. Gigabytes of weights run through the L2 and push out the rows that a product has just written and the next
kernel is about to read: they are written to memory and read from there. So are rows that have been read, though nobody will read
them again. By counters a step of 1024 tokens of qwen3-30b-a3b read 1271 MB, of which weights are 1208, and wrote 50, of which
the output is 4.

Read once. Weights that a single tile reads are the first to go (`read_once`): in many.py those of a tile that is a group by itself. Of
tiles that share weights none may say so: 4096 tokens of that model took 898 us instead of 658 where all did, 735 where the last
one of a group did. But low tiles of an expert (grouped.py) are under way at the same time, and all do, and so does decode's first
product. Decode's second one does where it reads an expert once: for a single token, or for several together. Else
each token goes over its experts for itself.
Kept. Rows that a first product of many.py writes are the last to go.
Spent. Once the sum has read a token's rows, these and those that they were made of are dropped, unwritten (`drop`).

The host says where (operators/lasting.ts): nowhere if the L2 holds all weights, and rows only where products wait for memory.

A load by TMA or to shared memory can be told how long to keep what it brings, but Triton 3.6, which knows policies for ordinary
loads and stores, has no words for that, nor for a policy that is known at run time. So a kernel puts the policy for its weights in a
register of PTX's own, by inline assembly, and the build adds the register and the last operand of these loads to the PTX (`say_so`).
"""

import re

import triton
import triton.language as tl

# Bytes of a line, the least that can be dropped.
LINE = tl.constexpr(128)

# What weights are loaded with, and the two policies that it may be.
POLICY = "weights_policy"
ONCE = "weights_once"
AS_EVER = "weights_as_ever"


@triton.jit
def read_once(alone):
    """Weights that are asked for from here on are read by nobody else if `alone`, an int32, is not 0. (Which loads are of weights
    say_so finds out.)"""
    tl.inline_asm_elementwise(
        "{ .reg .pred alone; setp.ne.s32 alone, $1, 0; selp.b64 weights_policy, weights_once, weights_as_ever, alone;"
        " mov.b32 $0, 0; }",
        "=r,r",
        [alone],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def load_words(at, there):
    """Four words of weights from each place on, which is a multiple of 16 bytes, with the policy; 0 where `there`, an int32, is 0.

    Triton has no load that gives a thread four words as four tensors.
    """
    return tl.inline_asm_elementwise(
        "{ .reg .pred there; setp.ne.s32 there, $5, 0; mov.b32 $0, 0; mov.b32 $1, 0; mov.b32 $2, 0; mov.b32 $3, 0;"
        " @there ld.global.L1::no_allocate.L2::cache_hint.v4.b32 {$0, $1, $2, $3}, [$4], weights_policy; }",
        "=r,=r,=r,=r,l,r",
        [at.to(tl.int64, bitcast=True), there],
        dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
        is_pure=False,
        pack=1,
    )


@triton.jit
def drop(line, there, after):
    """Drops lines of the L2 that nobody reads any more, before they are written to memory: what was in them is lost.

    `line`: int64, addresses of lines; `there`: int32, 0 where there is none; `after`: float32, something that is known only when all
    threads of the block have what they read there.
    """
    tl.inline_asm_elementwise(
        "{ .reg .pred there; .reg .b64 line; .reg .b32 after; mov.b32 after, $3; setp.ne.s32 there, $2, 0;"
        " cvta.to.global.u64 line, $1; @there discard.global.L2 [line], 128; mov.b32 $0, 0; }",
        "=r,l,r,f",
        [line, there, after],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


def say_so(ptx):
    """PTX in which loads of weights have the policy that the kernel names; as it is if it names none.

    Weights are the last tensor map among the parameters; or else what is loaded with evict_first, and what is copied to shared memory
    by sixteen bytes, rows that are multiplied with weights included.
    """
    if POLICY not in ptx:
        return ptx
    maps = re.findall(r"\.param \.align 64 \.b8 (\w+)\[128\]", ptx)
    ptx, loads = _by_tma(ptx, maps[-1]) if maps else _by_pointer(ptx)
    # load_words names it itself.
    if loads == 0 and f"], {POLICY};" not in ptx:
        raise ValueError("no load of weights is left to name a policy for")
    begin = (
        f"\t.reg .b64 {POLICY}, {ONCE}, {AS_EVER};\n"
        f"\tcreatepolicy.fractional.L2::evict_first.b64 {ONCE}, 1.0;\n"
        f"\tcreatepolicy.fractional.L2::evict_unchanged.b64 {AS_EVER}, 1.0;\n"
        f"\tmov.b64 {POLICY}, {AS_EVER};\n"
    )
    first = re.search(r"^\t(?:ld\.param|mov|cvta)\.", ptx, re.MULTILINE).start()
    return ptx[:first] + begin + ptx[first:]


def _by_tma(ptx, weights):
    copied = re.search(rf"mov\.b64\s+(%rd\d+), {weights};", ptx)[1]
    address = re.search(rf"cvta\.param\.u64\s+(%rd\d+), {copied};", ptx)[1]
    load = rf"(cp\.async\.bulk\.tensor\.\S+::complete_tx::bytes)( \[%r\d+\], \[{address}, {{[^}}]*}}\], \[%r\d+\]);"
    return re.subn(load, rf"\1.L2::cache_hint\2, {POLICY};", ptx)


def _by_pointer(ptx):
    made = r"createpolicy\.fractional\.L2::evict_first\.b64 (%rd\d+), 1\.0;"
    ptx, loads = re.subn(made, rf"mov.b64 \1, {POLICY};", ptx)
    copy = r"(cp\.async\.cg\.shared\.global)( \[[^\]]*\], \[[^\]]*\], 0x10, %r\d+);"
    ptx, copies = re.subn(copy, rf"\1.L2::cache_hint\2, {POLICY};", ptx)
    return ptx, loads + copies
