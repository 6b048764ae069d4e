"""The layer that all contenders run, its inputs, and what its output should be.

Weights are those that Nexus makes on its own device for the same seed (kernels/triton/experts/fill.py):
Philox noise, a function of the seed and of where a weight lies in Nexus's packed layout. So two
processes hold the same layer without a byte passed between them, and an output that is right
by this process's float64 computation proves it. Inputs are drawn here and reach Nexus as files.
"""

import math
from pathlib import Path

import torch
import triton
import triton.language as tl

from peer import Batch, Layer, Shape

BLOCK = 1024
# Tokens of a token's hot expert lead by so much: it is chosen first, and what the other choices add still shows.
HOT_LEAD = 0.5


@triton.jit
def fill(destination, seed, rows, columns, interleaved, scale, total, BLOCK: tl.constexpr):
    """destination [matrices, rows, columns]; with `interleaved`, row r < rows / 2 is Nexus's row 2 r, the others its odd rows."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = place % columns
    row = (place // columns) % rows
    matrix = place // columns // rows
    half = rows // 2
    packed = tl.where(interleaved != 0, tl.where(row < half, 2 * row, 2 * (row - half) + 1), row)
    noise = (2.0 * tl.rand(seed, (matrix * rows + packed) * columns + column) - 1.0) * scale
    tl.store(destination + place, noise.to(destination.dtype.element_ty), mask=place < total)


def make_layer(shape: Shape, seed: int) -> Layer:
    """Both products between +-sqrt(3 / hidden). Sizes are multiples of 64, Nexus's padding, so that places agree."""
    if shape.hidden % 64 or shape.intermediate % 64:
        raise ValueError(f"{shape.name}: hidden and intermediate must be multiples of 64")
    gate_up = torch.empty(shape.experts, 2 * shape.intermediate, shape.hidden, dtype=torch.bfloat16, device="cuda")
    down = torch.empty(shape.experts, shape.hidden, shape.intermediate, dtype=torch.bfloat16, device="cuda")
    scale = math.sqrt(3 / shape.hidden)
    for offset, (weights, interleaved) in enumerate(((gate_up, 1), (down, 0))):
        _, rows, columns = weights.shape
        grid = (triton.cdiv(weights.numel(), BLOCK),)
        fill[grid](weights, seed + offset, rows, columns, interleaved, scale, weights.numel(), BLOCK=BLOCK)
    return Layer(shape, gate_up, down)


def popularity(routing: str, experts: int, generator: torch.Generator) -> torch.Tensor:
    """Probabilities of the experts: "uniform", "zipf:S", or "hot", which is uniform but for one expert that all tokens choose."""
    ranks = torch.randperm(experts, generator=generator, device="cuda").double() + 1
    exponent = float(routing.split(":")[1]) if routing.startswith("zipf:") else 0.0
    weights = ranks**-exponent
    return weights / weights.sum()


def draw_batch(shape: Shape, tokens: int, routing: str, generator: torch.Generator) -> Batch:
    """Logits whose k largest are draws without replacement by popularity (log probability plus Gumbel noise)."""
    probabilities = popularity(routing, shape.experts, generator)
    uniform = torch.rand(tokens, shape.experts, dtype=torch.float64, device="cuda", generator=generator)
    gumbel = -torch.log(-torch.log(uniform.clamp(1e-15, 1 - 1e-15)))
    logits = (probabilities.log() + gumbel).float()
    if routing == "hot":
        expert = int(probabilities.argmax())
        logits[:, expert] = float("-inf")
        logits[:, expert] = logits.amax(dim=1) + HOT_LEAD
    hidden = torch.randn(tokens, shape.hidden, device="cuda", generator=generator).bfloat16()
    return Batch(hidden, logits)


def route64(shape: Shape, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    weights, ids = logits.double().softmax(dim=-1).topk(shape.top_k, dim=-1)
    return (weights / weights.sum(dim=-1, keepdim=True) if shape.renormalize else weights), ids


def reference(layer: Layer, batch: Batch) -> torch.Tensor:
    """The output in float64, [tokens, hidden], from the bfloat16 weights and hidden states."""
    weights, ids = route64(layer.shape, batch.logits)
    hidden = batch.hidden.double()
    out = torch.zeros_like(hidden)
    for expert in ids.unique().tolist():
        token, choice = torch.where(ids == expert)
        gate, up = (hidden[token] @ layer.gate_up[expert].double().T).chunk(2, dim=-1)
        rows = (torch.nn.functional.silu(gate) * up) @ layer.down[expert].double().T
        out[token] += weights[token, choice, None] * rows
    return out


def relative_errors(output: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """||output - expected|| / ||expected||, of all and of the token that is off most; infinite if anything was not written."""
    off = output.double() - expected
    errors = (off.norm() / expected.norm(), (off.norm(dim=1) / expected.norm(dim=1)).max())
    return tuple(float(error) if torch.isfinite(error) else math.inf for error in errors)


def write_batch(batch: Batch, folder: Path, name: str) -> None:
    batch.hidden.cpu().view(torch.uint16).numpy().tofile(folder / f"{name}.hidden.bf16")
    batch.logits.cpu().numpy().tofile(folder / f"{name}.logits.f32")


def read_output(path: Path, batch: Batch) -> torch.Tensor:
    bits = torch.from_file(str(path), size=batch.hidden.numel(), dtype=torch.uint16)
    return bits.view(torch.bfloat16).view(batch.hidden.shape).cuda()
