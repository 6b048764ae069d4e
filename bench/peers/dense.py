"""Peer: every expert for every token, the outputs of those not chosen weighted by zero.

What is left of the loop over experts once the host may not be asked who has rows. Added up over the experts it is one
wide gated layer, so it runs as two large products, which libraries do best, and can be captured. It does
experts / top_k times the arithmetic that is needed.
"""

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from peer import Batch, Layer, Setting, Step
from slots import activate, route_in_few

# Up to about so many rows a product on an H100 or H200 is bound by reading its weights, and needless rows cost nothing.
MAX_TOKENS = 256


class Dense:
    name = "dense"
    capturable = True

    def __init__(self):
        self.copies = WeakTensorKeyDictionary()

    def available(self) -> str | None:
        return None

    def settings(self, layer: Layer, tokens: int) -> list[Setting]:
        """Empty, so not run, where it cannot win: where some experts must be idle, or where arithmetic decides."""
        worthwhile = tokens * layer.shape.top_k >= layer.shape.experts and tokens <= MAX_TOKENS
        return [{}] if worthwhile else []

    def prepare(self, layer: Layer, batch: Batch, setting: Setting) -> Step:
        experts, hidden, intermediate = layer.down.shape
        gate_up = layer.gate_up.view(-1, hidden).T
        # The second product sums over experts and their columns at once, for which these must be neighbours: a copy.
        if layer.down not in self.copies:
            self.copies[layer.down] = layer.down.transpose(1, 2).reshape(experts * intermediate, hidden)
        down = self.copies[layer.down]
        zeros = torch.zeros(batch.tokens, experts, device=batch.hidden.device)

        def step() -> torch.Tensor:
            weights, ids = route_in_few(layer, batch.logits)
            everyone = zeros.scatter(1, ids, weights)
            activated = activate(torch.mm(batch.hidden, gate_up).view(batch.tokens, experts, -1))
            activated *= everyone[:, :, None]
            return torch.mm(activated.flatten(1), down)

        return step
