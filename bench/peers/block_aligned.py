"""vLLM's fused MoE schedule: slots sorted by expert into blocks of one expert each, two grouped products, a plain sum.

vLLM itself is not run: these are Triton kernels of our own that do the same steps in the same order, with its published
settings among those tried. softmax and top-k; align; rows gathered into the first product, [slots, 2 * intermediate];
SiLU-and-multiply; second product, routing weights in its epilogue, [slots, hidden]; sum over a token's slots.
"""

from typing import Any, Callable

import torch

import tile_tables
from block_aligned_kernels import grouped_product
from launching import Buffers, Launch, allocate, compile_jobs, step_of, types_of
from peer import Batch, Layer, Setting, Shape, Step
from routing_kernels import most_blocks, order_buffers, order_launches, topk_buffers, topk_launch
from row_kernels import silu_launch, sum_launch

# vLLM aligns nothing where so many times the slots are no more than the experts: hardly two slots share an expert.
SPARSITY = 4


class BlockAligned:
    name = "vllm-schedule"
    capturable = True

    def available(self) -> str | None:
        return None

    def settings(self, layer: Layer, tokens: int) -> list[Setting]:
        return tile_tables.candidates(layer.shape, tokens)

    def prepare(self, layer: Layer, batch: Batch, setting: Setting) -> Step:
        buffers = allocate(_buffers(layer.shape, batch.tokens, setting), batch.hidden.device)
        inputs = {"hidden": batch.hidden, "logits": batch.logits, "gate_up": layer.gate_up, "down": layer.down}
        launches = _launches(layer.shape, batch.tokens, setting, buffers | inputs)
        return step_of(launches, buffers["output"])

    def compile_jobs(self, shape: Shape, token_counts: list[int]) -> list[Callable[[], None]]:
        """Jobs that compile all that steps of such a layer with so many tokens launch, in any order, in any process."""
        inputs = {"logits": torch.float32} | dict.fromkeys(("hidden", "gate_up", "down"), torch.bfloat16)
        return compile_jobs(
            launch
            for tokens in token_counts
            for setting in tile_tables.candidates(shape, tokens)
            for launch in _launches(shape, tokens, setting, types_of(_buffers(shape, tokens, setting)) | inputs)
        )


def _is_aligned(shape: Shape, tokens: int) -> bool:
    return tokens * shape.top_k * SPARSITY > shape.experts


def _buffers(shape: Shape, tokens: int, setting: Setting) -> Buffers:
    slots = tokens * shape.top_k
    order = order_buffers(shape, tokens, setting["BLOCK_M"]) if _is_aligned(shape, tokens) else {}
    return {
        **topk_buffers(shape, tokens),
        **order,
        "both": ((slots, 2 * shape.intermediate), torch.bfloat16),
        "activated": ((slots, shape.intermediate), torch.bfloat16),
        "rows": ((slots, shape.hidden), torch.bfloat16),
        "output": ((tokens, shape.hidden), torch.bfloat16),
    }


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
