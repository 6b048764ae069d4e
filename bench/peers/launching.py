"""Kernel launches as values, so that what is compiled beforehand is what is launched later.

Not the kernels, and not which of them make up a step: that is each peer's. A peer states its buffers and its
launches once. With real buffers the launches make a step; with types in place of buffers they make compile jobs.
"""

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable

import torch

from peer import Step

# Name to (size, type).
Buffers = dict[str, tuple[tuple[int, ...], torch.dtype]]


@dataclass(frozen=True)
class Launch:
    kernel: Any
    grid: tuple[int, ...]
    # In the kernel's order: tensors (or types, if only to be compiled), numbers, None.
    args: tuple[Any, ...]
    # constexpr arguments, num_warps, num_stages.
    constants: dict[str, Any]

    def __call__(self) -> None:
        self.kernel[self.grid](*self.args, **self.constants)


def allocate(buffers: Buffers, device: torch.device) -> dict[str, torch.Tensor]:
    return {name: torch.empty(size, dtype=dtype, device=device) for name, (size, dtype) in buffers.items()}


def types_of(buffers: Buffers) -> dict[str, torch.dtype]:
    return {name: dtype for name, (_, dtype) in buffers.items()}


def step_of(launches: list[Launch], output: torch.Tensor) -> Step:
    def step() -> torch.Tensor:
        for launch in launches:
            launch()
        return output

    return step


def compile_jobs(launches: Iterable[Launch]) -> list[Callable[[], None]]:
    """Jobs that each compile one kernel variant into Triton's cache; they can be sent to other processes."""
    jobs = {}
    for launch in launches:
        function = launch.kernel.fn
        types = tuple(map(_specialization, launch.args, launch.kernel.params))
        key = (function.__module__, function.__name__, types, tuple(sorted(launch.constants.items())))
        jobs.setdefault(key, partial(_compile, function.__module__, function.__name__, launch.args, launch.constants))
    return list(jobs.values())


def _specialization(argument: Any, parameter: Any) -> Any:
    """What of an argument Triton compiles for: of an integer, whether it is 1 and whether 16 divides it."""
    if not isinstance(argument, int):
        return argument
    return None if parameter.do_not_specialize else (argument == 1, argument % 16 == 0)


def _compile(module: str, name: str, args: tuple[Any, ...], constants: dict[str, Any]) -> None:
    getattr(importlib.import_module(module), name).warmup(*args, grid=(1,), **constants)
