"""Peers: the experts module of Hugging Face transformers, by its implementations `grouped_mm` and `batched_mm`.

The library's own module and code, with this layer's weights as its parameters; not its model, nor its router, whose
linear is outside of what is timed and whose rest is `peer.route`.
"""

import torch

from grouped_mm import no_grouped_product
from peer import Batch, Layer, Setting, Step, route

# `batched_mm` copies an expert's weights for every slot. A graph keeps those copies, and each batch has its graph.
MAX_COPY_BYTES = 8 << 30


def experts_module(layer: Layer, implementation: str) -> torch.nn.Module:
    """Qwen3-MoE's experts; those of the other families of gated SiLU experts have the same code."""
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    shape = layer.shape
    config = Qwen3MoeConfig(
        num_experts=shape.experts,
        num_experts_per_tok=shape.top_k,
        hidden_size=shape.hidden,
        moe_intermediate_size=shape.intermediate,
        hidden_act="silu",
        experts_implementation=implementation,
    )
    with torch.device("meta"):
        module = Qwen3MoeExperts(config)
    module.gate_up_proj = torch.nn.Parameter(layer.gate_up, requires_grad=False)
    module.down_proj = torch.nn.Parameter(layer.down, requires_grad=False)
    return module.eval()


class Transformers:
    # Neither implementation asks the host anything: sizes are those of the slots, groups' ends stay on the device.
    capturable = True
    # Most users run it so.
    also_eager = True

    def __init__(self, implementation: str):
        self.implementation = implementation
        self.name = f"transformers-{implementation}"

    def available(self) -> str | None:
        try:
            import transformers  # noqa: F401
        except ImportError:
            return "transformers is not installed (pip install transformers)"
        return no_grouped_product() if self.implementation == "grouped_mm" else None

    def settings(self, layer: Layer, tokens: int) -> list[Setting]:
        """Empty, so not run, where `batched_mm` would copy more weights than there is room for."""
        a_slot = layer.gate_up[0].nbytes + layer.down[0].nbytes
        fits = self.implementation != "batched_mm" or tokens * layer.shape.top_k * a_slot <= MAX_COPY_BYTES
        return [{}] if fits else []

    def prepare(self, layer: Layer, batch: Batch, setting: Setting) -> Step:
        module = experts_module(layer, self.implementation)

        def step() -> torch.Tensor:
            weights, ids = route(layer, batch.logits)
            # As the router of a bfloat16 model hands them on; float32 weights would make the sum float32, and slower.
            return module(batch.hidden, ids, weights.to(batch.hidden.dtype))

        return step
