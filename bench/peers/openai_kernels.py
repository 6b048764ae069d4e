"""Peer: OpenAI's triton_kernels: its routing, and its `matmul_ogs` (gather, product, scatter and sum) twice.

Its code is unchanged, as is its choice of tiles, split and persistence. Ours is the activation, handed over at the
place meant for it, because the library's own is `silu(gate) * (up + 1)`. It runs on the accumulators of the first
product, so gate and up must be neighbouring columns, which takes a copy of the gate_up weights.
"""

import torch
import triton
import triton.language as tl
from torch.utils.weak import WeakTensorKeyDictionary

from peer import Batch, Layer, Setting, Step

# The library has no release of its own, and a package of another project has its name.
HOW_TO_INSTALL = (
    "OpenAI's triton_kernels (with matmul_ogs) is not installed: the wheel of sgl-kernel 0.3.21 carries it "
    "(pip install --no-deps --target DIR sgl-kernel==0.3.21, then PYTHONPATH=DIR)"
)

# The copy of each layer's gate_up weights, for as long as the layer lives.
_interleaved = WeakTensorKeyDictionary()


# The name becomes part of the compiled kernel's.
@triton.jit(repr=lambda _: "silu_and_mul")
def silu_and_mul(gate_up):
    gate, up = tl.split(tl.reshape(gate_up, (gate_up.shape[0], gate_up.shape[1] // 2, 2)))
    return gate * tl.sigmoid(gate) * up


def interleaved(gate_up: torch.Tensor) -> torch.Tensor:
    """[experts, 2 * intermediate, hidden] with each gate row before its up row."""
    if gate_up not in _interleaved:
        pairs = gate_up.unflatten(1, (2, -1)).transpose(1, 2)
        _interleaved[gate_up] = pairs.reshape(gate_up.shape)
    return _interleaved[gate_up]


class TritonKernels:
    name = "openai-triton_kernels"
    # The library leaves counts and offsets on the device and launches for the most blocks that there can be.
    capturable = True

    def available(self) -> str | None:
        if not torch.cuda.is_available():
            return "its Triton kernels need a GPU"
        try:
            import triton_kernels.matmul_ogs
            import triton_kernels.routing  # noqa: F401
        except ImportError:
            return HOW_TO_INSTALL
        return None

    def settings(self, layer: Layer, tokens: int) -> list[Setting]:
        """Empty where top_k is not a power of two: the library's routing has tiles of top_k columns."""
        return [{}] if layer.shape.top_k.bit_count() == 1 else []

    def prepare(self, layer: Layer, batch: Batch, setting: Setting) -> Step:
        from triton_kernels.matmul_ogs import FnSpecs, FusedActivation, matmul_ogs
        from triton_kernels.routing import routing

        shape = layer.shape
        # Weights are taken as [experts, K, N], by strides: views will do.
        gate_up = interleaved(layer.gate_up).transpose(1, 2)
        down = layer.down.transpose(1, 2)
        activation = FusedActivation(FnSpecs("silu_and_mul", silu_and_mul, ()), (), 2)

        def step() -> torch.Tensor:
            # A softmax over the chosen alone is that over all, renormalized.
            routed, gather, scatter = routing(batch.logits, shape.top_k, sm_first=not shape.renormalize)
            rows = matmul_ogs(batch.hidden, gate_up, None, routed, gather_indx=gather, fused_activation=activation)
            return matmul_ogs(rows, down, None, routed, scatter_indx=scatter, gammas=routed.gate_scal)

        return step
