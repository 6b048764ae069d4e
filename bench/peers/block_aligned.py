"""vLLM's fused MoE schedule: slots sorted by expert into blocks of one expert each, two grouped products, a plain sum.

vLLM itself is not run: these are Triton kernels of our own that do the same steps in the same order, with its published
settings for the card among those tried. softmax and top-k; align; rows gathered into the first product, [slots, 2 * intermediate];
SiLU-and-multiply; second product, routing weights in its epilogue, [slots, hidden]; sum over a token's slots.
"""

from typing import Any

import torch

import tile_tables
from block_aligned_kernels import grouped_product
from launching import Buffers, Launch
from peer import Setting, Shape
from routing_kernels import most_blocks, order_buffers, order_launches, topk_launch
from row_kernels import silu_launch, sum_launch
from schedule import Schedule

# vLLM aligns nothing where so many times the slots are no more than the experts: hardly two slots share an expert.
SPARSITY = 4


class BlockAligned(Schedule):
    name = "vllm-schedule"

    def candidates(self, shape: Shape, tokens: int) -> list[Setting]:
        return tile_tables.candidates(shape, tokens, torch.cuda.get_device_name())

    def ordering(self, shape: Shape, tokens: int, setting: Setting) -> Buffers:
        return order_buffers(shape, tokens, setting["BLOCK_M"]) if _is_aligned(shape, tokens) else {}

    def launches(self, shape: Shape, tokens: int, setting: Setting, buffers: dict[str, Any]) -> list[Launch]:
        return _launches(shape, tokens, setting, buffers)


def _is_aligned(shape: Shape, tokens: int) -> bool:
    return tokens * shape.top_k * SPARSITY > shape.experts


def _launches(shape: Shape, tokens: int, setting: Setting, buffers: dict[str, Any]) -> list[Launch]:
    aligned = _is_aligned(shape, tokens)
    blocks = most_blocks(shape, tokens, setting["BLOCK_M"]) if aligned else tokens * shape.top_k

    def product(x: str, w: str, out: str, n: int, k: int, top_k: int, weights: Any) -> Launch:
        return Launch(
            grouped_product,
            (blocks * -(-n // setting["BLOCK_N"]),),
            (
                buffers[x],
                buffers[w],
                buffers[out],
                weights,
                buffers["order"] if aligned else None,
                buffers["block_experts"] if aligned else buffers["ids"],
                buffers["block_count"] if aligned else None,
                n,
                k,
                tokens * shape.top_k,
                blocks,
            ),
            {
                "TOP_K": top_k,
                "WEIGHTED": weights is not None,
                "ALIGNED": aligned,
                "EVEN_K": k % setting["BLOCK_K"] == 0,
                **setting,
            },
        )

    return [
        topk_launch(shape, tokens, buffers),
        *(order_launches(shape, tokens, setting["BLOCK_M"], True, buffers) if aligned else []),
        product("hidden", "gate_up", "both", 2 * shape.intermediate, shape.hidden, shape.top_k, None),
        silu_launch(shape, tokens, buffers["both"], buffers["activated"]),
        product("activated", "down", "rows", shape.hidden, shape.intermediate, 1, buffers["weights"]),
        sum_launch(shape, tokens, buffers["rows"], None, buffers["output"]),
    ]
