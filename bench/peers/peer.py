"""What a peer is: somebody else's way to run the same MoE layer, from router logits to layer output.

Not the peers themselves (a file each) and not how they are timed (worker.py). All peers share the
weights of one layer and the inputs of one batch; none may change either.
"""

from dataclasses import dataclass
from typing import Any, Callable, Protocol

import torch

Setting = dict[str, Any]
# Runs one step and returns its output, bfloat16 [tokens, hidden].
Step = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """A layer of gated SiLU experts: softmax over all experts, the top_k largest, divided by their sum if `renormalize`."""

    name: str
    experts: int
    top_k: int
    hidden: int
    intermediate: int
    renormalize: bool


@dataclass(frozen=True)
class Layer:
    shape: Shape
    gate_up: torch.Tensor  # bfloat16 [experts, 2 * intermediate, hidden]: the gate's rows, then the up projection's
    down: torch.Tensor  # bfloat16 [experts, hidden, intermediate]


@dataclass(frozen=True)
class Batch:
    hidden: torch.Tensor  # bfloat16 [tokens, hidden]
    logits: torch.Tensor  # float32 [tokens, experts]

    @property
    def tokens(self) -> int:
        return self.hidden.shape[0]


class Peer(Protocol):
    name: str
    # Whether a step can be captured in a CUDA graph: no host synchronisation, no shape that depends on the routing.
    capturable: bool
    # Whether a captured step is worth a figure without its graph, too; may be left out.
    also_eager: bool = False

    def available(self) -> str | None:
        """Why it cannot run here, in words, or None."""

    def settings(self, layer: Layer, tokens: int) -> list[Setting]:
        """What to choose among for so many tokens, the likeliest best first; [{}] where there is nothing to choose."""

    def prepare(self, layer: Layer, batch: Batch, setting: Setting) -> Step:
        """Allocates what a step needs and returns the step. Work that depends on the weights alone may be done here.

        A step does everything from `batch.logits` to the output anew, on the current stream.
        """


def route(layer: Layer, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(weights, ids): float32 and int64 [tokens, top_k], as PyTorch's own operators give them."""
    weights, ids = torch.softmax(logits, dim=-1, dtype=torch.float32).topk(layer.shape.top_k, dim=-1)
    if layer.shape.renormalize:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights, ids
