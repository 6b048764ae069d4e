"""The practical limit of the products: cuBLAS's batched ones, with the rows spread evenly over the experts in use.

Not a peer: no routing, no gathering, no activation and no sum, on rows that are ready where they are needed.
"""

import torch

from peer import Layer, Step

# Inputs are noise, as a layer's are: with constants the device draws less power and clocks higher.
SEED = 1


def limit(layer: Layer, tokens: int, active_experts: int) -> Step:
    """Both products of `tokens * top_k` rows over so many experts; a step returns [active_experts, rows, hidden]."""
    rows = -(-tokens * layer.shape.top_k // active_experts)
    device = layer.down.device
    generator = torch.Generator(device).manual_seed(SEED)

    def noise(width: int) -> torch.Tensor:
        return torch.randn(active_experts, rows, width, generator=generator, device=device).to(layer.down.dtype)

    gathered, activated = noise(layer.shape.hidden), noise(layer.shape.intermediate)
    gate_up, down = layer.gate_up[:active_experts].transpose(1, 2), layer.down[:active_experts].transpose(1, 2)
    gate_up_rows = gathered.new_empty(active_experts, rows, gate_up.shape[2])
    down_rows = gathered.new_empty(active_experts, rows, down.shape[2])

    def step() -> torch.Tensor:
        torch.bmm(gathered, gate_up, out=gate_up_rows)
        return torch.bmm(activated, down, out=down_rows)

    return step
