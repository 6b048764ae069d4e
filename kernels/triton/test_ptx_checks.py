"""Checks that the build's checks of PTX (ptx_checks.py) find what they are for, in PTX as far as they look at it. Needs neither Triton nor a GPU.

    python test_ptx_checks.py
"""

import sys

from ptx_checks import RELEASE, WAIT, check_waits

WAITS = f"{WAIT};\n{RELEASE};\n"
SIMPLE = f""".entry kernel(
@%p1 bra $L_2;
{WAITS}bra.uni $L_3;
$L_2:
{WAITS}$L_3:
ret;
"""


def partitioned(first, others, dispatch):
    """A first partition and others as LLVM writes them: warps of the others are sent to theirs, come back when it is done, and then to the end."""
    code = "".join(f"$L_{5 + i}:\nsetmaxnreg.inc.sync.aligned.u32 104;\nbarrier.sync 1;\n{other}bra.uni $L_70;\n" for i, other in enumerate(others))
    return f""".entry kernel(
@%p2 bra $L_93;
bra.uni $L_2;
$L_93:
mbarrier.init.shared::cta.b64 [%r1], 1;
barrier.sync 1;
barrier.sync 1;
{first}barrier.sync 1;
ret;
$L_70:
barrier.sync 1;
$L_2:
barrier.sync 1;
@%p3 bra $L_4;
{dispatch}{code}$L_4:
barrier.sync 1;
barrier.sync 1;
bra.uni $L_2;
$L_128:
ret;
"""


def by_table(others):
    labels = ",\n".join(f"$L_{5 + i}" for i in range(len(others)))
    return f"$L_brx_0: .branchtargets\n{labels},\n$L_128;\nbrx.idx %r148, $L_brx_0;\n"


def by_branches(others):
    return "".join(f"@%p{10 + i} bra $L_{5 + i};\n" for i in range(1, len(others))) + "@%p20 bra $L_128;\nbra.uni $L_5;\n"


def refused(ptx):
    try:
        check_waits("kernel", ptx, True)
    except ValueError:
        return True
    return False


def cases():
    """(what it is, PTX, whether it is to be refused)"""
    yield "one that waits on both ways", SIMPLE, False
    for at in range(2):
        parts = SIMPLE.split(WAITS)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        yield f"one that does not on way {at}", WAITS.join(parts), True
    yield "one that releases first", SIMPLE.replace(WAITS, f"{RELEASE};\n{WAIT};\n", 1), True
    for how in (by_table, by_branches):
        for count in (2, 4):
            others = [WAITS] * count
            name = f"{count} other partitions, {how.__name__}"
            yield f"{name}, all of which wait", partitioned(WAITS, others, how(others)), False
            yield f"{name}, and a first one that does not", partitioned("", others, how(others)), True
            none = [""] * count
            early = partitioned("", none, how(none)).replace("mbarrier.init", f"{WAITS}mbarrier.init", 1)
            yield f"{name}, that begin after the first has waited", early, False
            for i in range(count):
                for code, what in (("", "does not wait"), (f"{RELEASE};\n{WAIT};\n", "releases first"), ("@%p9 ret;\n" + WAITS, "can end")):
                    some = [*others[:i], code, *others[i + 1 :]]
                    yield f"{name}, of which {i} {what}", partitioned(WAITS, some, how(some)), True
    others = [WAITS, ""]
    yield "a jump that is not understood", partitioned(WAITS, others, by_table(others).replace("brx.idx", "brx.idx.uni")), True
    yield "partitions without barriers", partitioned("", [""], by_branches([""])).replace("mbarrier.init", "nothing"), True


def main():
    failures = [what for what, ptx, wanted in cases() if refused(ptx) is not wanted]
    for what in failures:
        print(f"not as it should be: {what}")
    print(f"{len(list(cases()))} checks of the checks of PTX, {len(failures)} failed")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
