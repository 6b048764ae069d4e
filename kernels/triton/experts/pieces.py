"""Which piece a program of many.py or packed.py does next: the one it is dealt, as it is or in step with others, or one that it claims.

Dealt. In round r the program at place p does piece p + r * programs. Where pieces take unequal time programs change places from
round to round, so that none falls behind. All that was measured of busy experts was measured so; with runs of one piece it made no
difference but for two cells (1.6 % to either side).

In step. Tiles of an expert find its weights in the L2 if programs that go through the same columns do so at the same time, and
with rows of 7168 elements that is within a tenth of what a piece takes: else each reads the weights from memory, for which
the others wait, and fall behind in turn. If the options say so programs therefore meet: none asks for its next piece before
nearly all have come to theirs. By counters, first product of 4096 tokens of DeepSeek-V3's shape, 128 experts, Zipf 1: 14.0 GB
became 8.8, of 7.5 GB that the weights are, and 5095 us 3362 (H100). It is no barrier, and nothing but time depends
on it: who has waited for long goes on, and lets nobody else wait in this launch.

Claimed. The first piece is dealt, and every other one goes to the program that asks first. So nobody waits while there is work, and
tiles of an expert are begun one after the other, which by itself keeps them near each other. Where products wait for memory this
takes less time than any way of dealing. Where the tensor cores are busy it takes more: programs that begin together ask for the
same rows and weights at the same moment, and what they ask for in common seems to be passed on once. By counters, first product of
4096 tokens of qwen3-30b-a3b, dealt and claimed: from memory 919 and 916 MB, from the L2 2.7 and 3.3 GB, 390 us and 406 (H100).

The runtime decides which (operators/lane.ts, packed.ts). The bucket kernel leaves a word for one product whose rows are found by pointers
and one for one whose rows lie in order (X_DESCRIPTOR), both empty; others of the same list are dealt their pieces
(operators/lists.ts), as two at the same time would take each other's. In step the word counts pieces begun, and stays full. Claims are
counted from 0 to how many pieces there are, as every program but for those without any work claims once in vain; the last of these
empties the word.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# In step a program asks once all but a sixteenth (2^-4) of the programs have said that they are about to. (An eighth: 3 % longer in
# some cells of DeepSeek-V3's shape; all: 2 % longer in some of gpt-oss-20b's and large.)
REST_SHIFT = gl.constexpr(4)
# How often it looks how many have. 64 times are too few where pieces wait for memory, and programs gave up (DeepSeek-V3's shape,
# 2048 tokens, first product 3274 us instead of 2657); more would be lost where not all programs are on the GPU at once.
MOST_LOOKS = gl.constexpr(256)
# Above any number of pieces.
ENOUGH = gl.constexpr(2**30)


@gluon.jit
def next_place(place, further, programs):
    """In round r program p has place (p + r * further) mod programs, further being 0 or 1."""
    return gl.where(place + further == programs, 0, place + further)


@gluon.jit
def begun_by_round(turn, programs, total):
    """How many of the pieces from the second round on must have been begun for a program to ask for its piece of round `turn`."""
    return gl.minimum(turn * programs, total - programs) - (programs >> REST_SHIFT)


@gluon.jit
def wait_for(begun, pieces):
    """Until so many pieces have been begun. If that takes too long nobody waits any more in this launch."""
    looks = 0
    while (looks < MOST_LOOKS) & (gl.load(begun, volatile=True) < pieces):
        looks += 1
    if looks == MOST_LOOKS:
        gl.atomic_max(begun, ENOUGH, sem="relaxed")


@gluon.jit
def ask_for_claim(begun, claim):
    """A number that no other program gets, if there is one to be claimed. The first thread has it, and nothing waits for it yet."""
    thread = gl.arange(0, 32 * gl.num_warps(), layout=gl.BlockedLayout([1], [32], [gl.num_warps()], [0]))
    return gl.atomic_add(begun + thread * 0, thread * 0 + 1, mask=(thread == 0) & claim, sem="relaxed")


@gluon.jit
def claimed_piece(number, box, begun, claim, programs, total):
    """The piece that was claimed, for all threads: from the first one through shared memory, `box`, an int32 a thread."""
    box.store(number)
    gl.thread_barrier()
    number = gl.max(box.slice(0, 1).load(number.type.layout), axis=0)
    if claim & (number == total - 1):
        gl.store(begun, 0)
    return programs + number
