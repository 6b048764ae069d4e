"""What the two Triton schedules have in common as peers: buffers by name, and launches over them that are said once.

Not the schedules (block_aligned.py, scatter.py), which say how slots are ordered and what the products are.
"""

from abc import ABC, abstractmethod
from typing import Any, Callable

import torch

from launching import Buffers, Launch, allocate, compile_jobs, step_of, types_of
from peer import Batch, Layer, Setting, Shape, Step
from routing_kernels import topk_buffers


class Schedule(ABC):
    name: str
    capturable = True

    @abstractmethod
    def candidates(self, shape: Shape, tokens: int) -> list[Setting]:
        """Settings worth timing, the likeliest best first."""

    @abstractmethod
    def ordering(self, shape: Shape, tokens: int, setting: Setting) -> Buffers:
        """What the order of the slots is kept in."""

    @abstractmethod
    def launches(self, shape: Shape, tokens: int, setting: Setting, buffers: dict[str, Any]) -> list[Launch]:
        """A whole step over all buffers and the inputs."""

    def available(self) -> str | None:
        return None

    def settings(self, layer: Layer, tokens: int) -> list[Setting]:
        return self.candidates(layer.shape, tokens)

    def prepare(self, layer: Layer, batch: Batch, setting: Setting) -> Step:
        buffers = allocate(self._buffers(layer.shape, batch.tokens, setting), batch.hidden.device)
        inputs = {"hidden": batch.hidden, "logits": batch.logits, "gate_up": layer.gate_up, "down": layer.down}
        launches = self.launches(layer.shape, batch.tokens, setting, buffers | inputs)
        return step_of(launches, buffers["output"])

    def compile_jobs(self, shape: Shape, token_counts: list[int]) -> list[Callable[[], None]]:
        """Jobs that compile all that steps of such a layer with so many tokens launch, in any order, in any process."""
        inputs = {"logits": torch.float32} | dict.fromkeys(("hidden", "gate_up", "down"), torch.bfloat16)
        return compile_jobs(
            launch
            for tokens in token_counts
            for setting in self.candidates(shape, tokens)
            for launch in self.launches(
                shape, tokens, setting, types_of(self._buffers(shape, tokens, setting)) | inputs
            )
        )

    def _buffers(self, shape: Shape, tokens: int, setting: Setting) -> Buffers:
        slots = tokens * shape.top_k
        return {
            **topk_buffers(shape, tokens),
            **self.ordering(shape, tokens, setting),
            "both": ((slots, 2 * shape.intermediate), torch.bfloat16),
            "activated": ((slots, shape.intermediate), torch.bfloat16),
            "rows": ((slots, shape.hidden), torch.bfloat16),
            "output": ((tokens, shape.hidden), torch.bfloat16),
        }
