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
# Any of them: one that is none of those below is not understood.
JUMP = re.compile(r"^(?:@!?%p\d+\s+)?(?:bra|brx)\b")
BRANCH = re.compile(r"^(@!?%p\d+\s+)?bra(?:\.uni)?\s+(\$\w+);")
RETURN = re.compile(r"^(?:@!?%p\d+\s+)?(?:ret|exit);")
# A branch to one of several labels, and which these are.
CHOICE = re.compile(r"^brx\.idx\s+%r\d+,\s+(\$\w+);")
TARGETS = re.compile(r"(\$\w+): \.branchtargets([^;]*);")


def check_waits(name, ptx, dependent):
    """The two rules of dependent launches (overlap.py): on every way through the kernel a wait, and none before it releases.

    Other kernels have neither. Warps of other partitions begin, and end, when the first one says so, which makes their barriers: it waits
    before it does, or each partition waits by itself. They are sent to their partition, which meets the first one, and come back when that
    is done, or are sent to the end. What a kernel reads and writes before it waits is not looked at.
    """
    if not dependent:
        if WAIT in ptx or RELEASE in ptx:
            raise ValueError(f"{name} waits for the kernel before it or releases the next one, and is no dependent launch")
        return
    lines = [line.strip() for line in ptx.splitlines()]
    labels = {found[1]: at for at, line in enumerate(lines) if (found := LABEL.match(line))}
    targets = {found[1]: re.findall(r"\$\w+", found[2]) for found in TARGETS.finditer(ptx)}
    seen, ways = set(), [(next(at for at, line in enumerate(lines) if ".entry" in line), False, 0)]
    first_is_early = other_is_early = False
    while ways:
        at, first, meetings = ways.pop()
        while (at, first, meetings) not in seen and WAIT not in lines[at]:
            line = lines[at]
            seen.add((at, first, meetings))
            first = first or BARRIER_MADE in line
            if HANDSHAKE in line:
                if first:
                    first_is_early = True
                elif meetings == 2:
                    other_is_early = True
                    break
                elif meetings == 1 and HANDSHAKE in lines[at + 1]:
                    # Sent nowhere.
                    break
                meetings += not first
            if RELEASE in line:
                raise ValueError(f"{name} can let the next kernel start before it has waited for the one in front")
            if RETURN.match(line):
                if first or meetings != 1:
                    raise ValueError(f"{name} can end without waiting for the kernel in front")
                if not line.startswith("@"):
                    break
            if chosen := CHOICE.match(line):
                ways += [(labels[target], first, meetings) for target in targets[chosen[1]]]
                break
            if branch := BRANCH.match(line):
                ways.append((labels[branch[2]], first, meetings))
                if branch[1] is None:
                    break
            elif JUMP.match(line):
                raise ValueError(f"{name} branches in a way that is not understood: {line}")
            at += 1
    if HANDSHAKE in ptx and BARRIER_MADE not in ptx:
        raise ValueError(f"{name} has partitions, of which none makes barriers: which is the first is not known")
    if first_is_early and other_is_early:
        raise ValueError(f"{name} has a partition that neither waits for the kernel in front nor begins after another has")


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
