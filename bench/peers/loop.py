"""Peers: the loop over experts, as it is usually written and as fast as PyTorch lets it be.

Neither can be captured in a CUDA graph: how many rows an expert has must reach the host. What PyTorch offers without
that is in dense.py and grouped_mm.py.
"""

import torch
import torch.nn.functional as F

from peer import Batch, Layer, Setting, Step, route
from slots import Slots, activate, route_in_few, sum_settings


class Loop:
    """For each expert: find its tokens, gather them, two products, add to the output. The usual baseline.

    The host waits for the device once for each expert.
    """

    name = "loop"
    capturable = False

    def available(self) -> str | None:
        return None

    def settings(self, layer: Layer, tokens: int) -> list[Setting]:
        return [{}]

    def prepare(self, layer: Layer, batch: Batch, setting: Setting) -> Step:
        sums = torch.empty(batch.hidden.shape, dtype=torch.float32, device=batch.hidden.device)

        def step() -> torch.Tensor:
            weights, ids = route(layer, batch.logits)
            sums.zero_()
            for expert in range(layer.shape.experts):
                token, choice = torch.where(ids == expert)
                if token.shape[0] == 0:
                    continue
                rows = F.linear(batch.hidden[token], layer.gate_up[expert])
                rows = F.linear(activate(rows), layer.down[expert])
                sums.index_add_(0, token, rows * weights[token, choice, None])
            return sums.to(batch.hidden.dtype)

        return step


class SortedLoop:
    """The loop with all around it taken out: slots sorted once, rows gathered once, activated and summed once.

    The host waits once, for the experts' counts, and issues two products for each expert that has rows.
    """

    name = "loop-sorted"
    capturable = False

    def available(self) -> str | None:
        return None

    def settings(self, layer: Layer, tokens: int) -> list[Setting]:
        return sum_settings()

    def prepare(self, layer: Layer, batch: Batch, setting: Setting) -> Step:
        slots = Slots(layer, batch.tokens)
        gate_up = batch.hidden.new_empty(batch.tokens * layer.shape.top_k, layer.gate_up.shape[1])
        down = batch.hidden.new_empty(batch.tokens * layer.shape.top_k, layer.shape.hidden)
        # Views made here, so that a step's host time goes to launches.
        gate_up_weights, down_weights = layer.gate_up.transpose(1, 2).unbind(), layer.down.transpose(1, 2).unbind()

        def step() -> torch.Tensor:
            weights, ids = route_in_few(layer, batch.logits)
            order, ends = slots.sort(ids)
            # Issued before the wait, so that the device is not idle while the host is told the counts.
            gathered = slots.gather(batch.hidden, order)
            ends = ends.tolist()
            parts = [(e, begin, end) for e, (begin, end) in enumerate(zip([0, *ends], ends)) if begin < end]

            def project(rows: torch.Tensor, matrices: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
                for expert, begin, end in parts:
                    torch.mm(rows[begin:end], matrices[expert], out=out[begin:end])
                return out

            activated = activate(project(gathered, gate_up_weights, gate_up))
            return slots.output(
                setting["sum"], activated, order, weights, lambda rows: project(rows, down_weights, down)
            )

        return step
