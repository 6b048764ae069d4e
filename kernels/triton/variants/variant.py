"""What one compiled kernel is, and what all families of them share. The families are in the files beside this one."""

from dataclasses import dataclass, field

from experts import grouped

# Every n, k and pitch of these kernels is a multiple of this many elements: whole panels.
PADDING = grouped.PANEL.value
ELEMENTS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


@dataclass(frozen=True)
class Variant:
    """One kernel to compile."""

    name: str
    function: object
    # Triton type of each argument that is passed, in order.
    arguments: dict
    constants: dict
    # Arguments that the caller promises are multiples of 16 (integers) or 16-byte aligned (pointers).
    divisible: tuple
    num_warps: int
    num_stages: int
    # How to launch it: build.py adds what depends on the compiled code.
    grid: dict
    # What it is for: the loader picks by these.
    selects: dict = field(default_factory=dict)
    ptx: bool = False
    # A dependent launch (programmatic stream serialization): the kernel itself waits for the one before it.
    dependent: bool = False
