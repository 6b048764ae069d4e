"""ScatterMoE's schedule (arXiv 2403.08245): slots sorted by expert and never copied, products that gather and scatter.

ScatterMoE itself is not run: these are Triton kernels of our own that do the same steps, with its published setting
among those tried. softmax and top-k; sort; the first product gathers rows and leaves them in sorted order;
SiLU-and-multiply; the second product scatters back to [tokens, top_k, hidden]; weighted sum. Two things are made faster
than published: the sort is the counting sort of routing_kernels.py, and the number of blocks stays on the device, so
that a CUDA graph holds all of it.
"""

from typing import Any

import torch

from launching import Buffers, Launch
from peer import Setting, Shape
from routing_kernels import most_blocks, order_buffers, order_launches, topk_launch
from row_kernels import silu_launch, sum_launch
from scatter_kernels import scatter2scatter
from schedule import Schedule
from tile_tables import distinct, tuned


def _setting(block_m: int, block_n: int, block_k: int, num_warps: int, num_stages: int) -> Setting:
    sizes = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k}
    return sizes | {"num_warps": num_warps, "num_stages": num_stages}


# The only setting that ScatterMoE has.
PUBLISHED = _setting(128, 128, 32, 4, 4)
# Where experts have few rows: tiles of fewer rows, and more of the weights on their way at once.
FOR_FEW_ROWS = [_setting(16, 128, 128, 4, 3), _setting(64, 128, 64, 4, 4)]
# Where they have many: tiles that keep Hopper's tensor cores busy.
FOR_MANY_ROWS = [_setting(128, 256, 64, 8, 4), _setting(64, 128, 64, 4, 4)]
# Rows of an expert, on average, from which on there are many.
MANY_ROWS = 32


class Scatter(Schedule):
    name = "scattermoe-schedule"

    def candidates(self, shape: Shape, tokens: int) -> list[Setting]:
        rows = tokens * shape.top_k / shape.experts
        guesses = FOR_MANY_ROWS if rows >= MANY_ROWS else FOR_FEW_ROWS
        best, _ = tuned(self.name, shape, tokens, torch.cuda.get_device_name())
        return distinct([PUBLISHED, *best, *guesses])

    def ordering(self, shape: Shape, tokens: int, setting: Setting) -> Buffers:
        return order_buffers(shape, tokens, setting["BLOCK_M"])

    def launches(self, shape: Shape, tokens: int, setting: Setting, buffers: dict[str, Any]) -> list[Launch]:
        return _launches(shape, tokens, setting, buffers)


def _launches(shape: Shape, tokens: int, setting: Setting, buffers: dict[str, Any]) -> list[Launch]:
    blocks = most_blocks(shape, tokens, setting["BLOCK_M"])

    def product(x: str, w: str, out: str, n: int, k: int, grouped: dict[str, bool]) -> Launch:
        return Launch(
            scatter2scatter,
            (blocks * -(-n // setting["BLOCK_N"]),),
            (
                buffers[x],
                buffers[w],
                buffers[out],
                buffers["order"],
                buffers["block_experts"],
                buffers["block_rows"],
                buffers["block_count"],
                n,
                k,
            ),
            {"TOP_K": shape.top_k, **grouped, "EVEN_K": k % setting["BLOCK_K"] == 0, **setting},
        )

    sorted_out = {"X_GROUPED": False, "OUT_GROUPED": True}
    sorted_in = {"X_GROUPED": True, "OUT_GROUPED": False}
    return [
        topk_launch(shape, tokens, buffers),
        *order_launches(shape, tokens, setting["BLOCK_M"], False, buffers),
        product("hidden", "gate_up", "both", 2 * shape.intermediate, shape.hidden, sorted_out),
        silu_launch(shape, tokens, buffers["both"], buffers["activated"]),
        product("activated", "down", "rows", shape.hidden, shape.intermediate, sorted_in),
        sum_launch(shape, tokens, buffers["rows"], buffers["weights"], buffers["output"]),
    ]
