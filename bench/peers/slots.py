"""What the peers composed of PyTorch's operators share: slots sorted by expert, their activation, their sum by token.

Not a peer. A slot is one choice of one token: slot t * top_k + j is the j-th choice of token t. Nothing here waits for
the device, has shapes that depend on the routing, or adds with atomics.
"""

from typing import Callable

import torch
import torch.nn.functional as F

from peer import Layer, Setting

# Keys of one byte sort in one pass of a radix sort; the int64 that topk gives would take eight.
ONE_BYTE_EXPERTS = 256


def route_in_few(layer: Layer, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `peer.route` gives, by fewer kernels: choices in no order, and one softmax where that normalizes too."""
    top_k = layer.shape.top_k
    if layer.shape.renormalize:
        chosen, ids = logits.topk(top_k, dim=-1, sorted=False)
        return chosen.softmax(dim=-1), ids
    return logits.softmax(dim=-1).topk(top_k, dim=-1, sorted=False)


class Slots:
    """The slots of so many tokens, and the constants needed to sort them."""

    def __init__(self, layer: Layer, tokens: int):
        shape, device = layer.shape, layer.down.device
        self.top_k = shape.top_k
        self.key_type = torch.uint8 if shape.experts <= ONE_BYTE_EXPERTS else torch.int16
        self.experts = torch.arange(shape.experts, device=device).to(self.key_type)
        self.numbers = torch.arange(tokens * self.top_k, device=device)
        self.firsts = self.numbers[:: self.top_k].contiguous()

    def sort(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(order, ends): slots ordered by expert, and where each expert's slots end, int32 [experts]."""
        keys, order = ids.flatten().to(self.key_type).sort()
        return order, torch.searchsorted(keys, self.experts, right=True, out_int32=True)

    def gather(self, hidden: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        return hidden[order // self.top_k]

    def inverse(self, order: torch.Tensor) -> torch.Tensor:
        """Where in `order` each slot is."""
        return torch.empty_like(order).scatter_(0, order, self.numbers)

    def by_token(self, rows: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """Sorted rows as [tokens, top_k, width]."""
        return rows[self.inverse(order)].view(-1, self.top_k, rows.shape[1])

    def output(
        self,
        sum_by: str,
        activated: torch.Tensor,
        order: torch.Tensor,
        weights: torch.Tensor,
        project: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """[tokens, hidden]: sorted activations projected by `project`, weighted, summed by token in a fixed order."""
        if sum_by == "scaled":
            activated *= weights.flatten()[order, None]
            return self.by_token(project(activated), order).sum(dim=1)
        rows = project(activated)
        weights = weights.to(rows.dtype)
        if sum_by == "bag":
            weights = weights.flatten()
            return F.embedding_bag(self.inverse(order), rows, self.firsts, mode="sum", per_sample_weights=weights)
        return torch.bmm(weights[:, None, :], self.by_token(rows, order)).squeeze(1)


def sum_settings() -> list[Setting]:
    """Ways to sum, of which none is the fastest throughout.

    One kernel that gathers, weighs and adds but reads two bytes at a time ("bag"); activations scaled beforehand, a
    copy and a plain sum ("scaled"); a copy and a product of small matrices ("matmul").
    """
    return [{"sum": way} for way in ("bag", "scaled", "matmul")]


def activate(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of [..., 2 * intermediate]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)
