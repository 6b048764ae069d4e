"""What the build makes sure of in a kernel's PTX, as nothing else would show it: how it waits, and how its warps meet.

No more than text is looked at: a kernel is labels, branches and returns, and the few instructions that are asked after.
"""

import re

WAIT = "griddepcontrol.wait"
RELEASE = "griddepcontrol.launch_dependents"
# Where warps of partitions of their own wait until the first partition lets them begin, and that one lets them.
HANDSHAKE = "barrier.sync"
BARRIER_MADE = "mbarrier.init"
LABEL = re.compile(r"^(\$\w+):")
BRANCH = re.compile(r"^(@!?%p\d+\s+)?bra(?:\.uni)?\s+(\$\w+);")
RETURN = re.compile(r"^(?:@!?%p\d+\s+)?(?:ret|exit);")


def check_waits(name, ptx, dependent):
    """The two rules of dependent launches (overlap.py): on every way through the kernel a wait, and none before it releases.

    Other kernels have neither. Warps of other partitions begin, and end, when the first one says so, which makes their barriers: its way
    must wait before it does.
    """
    if not dependent:
        if WAIT in ptx or RELEASE in ptx:
            raise ValueError(f"{name} waits for the kernel before it or releases the next one, and is no dependent launch")
        return
    lines = [line.strip() for line in ptx.splitlines()]
    labels = {found[1]: at for at, line in enumerate(lines) if (found := LABEL.match(line))}
    seen, ways = set(), [(next(at for at, line in enumerate(lines) if ".entry" in line), False)]
    while ways:
        at, first = ways.pop()
        while at not in seen and WAIT not in lines[at]:
            seen.add(at)
            first = first or BARRIER_MADE in lines[at]
            if HANDSHAKE in lines[at]:
                if first:
                    raise ValueError(f"{name} lets other partitions begin before it has waited for the kernel in front")
                break
            if RELEASE in lines[at]:
                raise ValueError(f"{name} can let the next kernel start before it has waited for the one in front")
            if RETURN.match(lines[at]):
                raise ValueError(f"{name} can end without waiting for the kernel in front")
            if branch := BRANCH.match(lines[at]):
                ways.append((labels[branch[2]], first))
                if branch[1] is None:
                    break
            at += 1


def check_barriers(name, ptx):
    """Warp groups of a Gluon kernel may go through a step on two paths (many.py): each must have as many barriers.

    A step asks for operands once. The first stretch of code asks for those of the first steps, all warps together. Barriers
    that only one path has outside its steps are not found. Partitions have barriers of their own, and one path each.
    """
    if HANDSHAKE in ptx:
        return
    found = []
    barriers = steps = 0
    for line in [*ptx.splitlines(), "$L"]:
        if line.startswith("$L") or re.search(r"\bbra\b(?!.*waitLoop)", line):
            if steps:
                found.append(barriers / steps)
            barriers = steps = 0
        barriers += "bar.sync" in line
        steps += "mbarrier.arrive.expect_tx" in line
    if len(set(found[1:])) != 1:
        raise ValueError(f"{name}: barriers a step, by path, are {found[1:]}; there must be as many on each")
