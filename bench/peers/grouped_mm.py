"""Peer: PyTorch's grouped matrix product (`torch._grouped_mm`), with routing, sort and sum composed around it by hand.

Not compiled, and no kernel of our own: what a few well-chosen calls give. On Hopper each product is a CUTLASS kernel
that reads its groups' ends on the device; it wants rows and matrices that start at multiples of 16 bytes, which any
width divisible by 8 gives, and takes the transposed weights as a view.
"""

import torch
import torch.nn.functional as F

from peer import Batch, Layer, Setting, Step
from slots import Slots, activate, route_in_few, sum_settings

# Older devices get a loop over the groups, their ends copied to the host.
FIRST_CAPABILITY = (9, 0)


def no_grouped_product() -> str | None:
    """Why the grouped product cannot run here as meant; on a CPU it can, if only to be tested."""
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < FIRST_CAPABILITY:
        return "grouped products need compute capability 9.0; older devices run a loop with host synchronisation"
    return None


class GroupedMm:
    name = "torch-grouped_mm"
    capturable = True

    def available(self) -> str | None:
        return no_grouped_product()

    def settings(self, layer: Layer, tokens: int) -> list[Setting]:
        return sum_settings()

    def prepare(self, layer: Layer, batch: Batch, setting: Setting) -> Step:
        slots = Slots(layer, batch.tokens)
        gate_up, down = layer.gate_up.transpose(1, 2), layer.down.transpose(1, 2)

        def step() -> torch.Tensor:
            weights, ids = route_in_few(layer, batch.logits)
            order, ends = slots.sort(ids)
            activated = activate(F.grouped_mm(slots.gather(batch.hidden, order), gate_up, offs=ends))
            return slots.output(
                setting["sum"], activated, order, weights, lambda rows: F.grouped_mm(rows, down, offs=ends)
            )

        return step
