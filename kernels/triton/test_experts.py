"""Checks the bundle's kernels on a GPU against PyTorch in float64, from the same rounded inputs.

    python test_experts.py [--bundle DIR]

Inputs are fresh and random, outputs poisoned with NaN before every run. The seed is printed. Exit code 1 on any failure.
"""

import argparse
import random
import sys
import time
from pathlib import Path

import torch

import launch
from buckets import SPARE_TILES, Buckets, groups, list_counts, with_room
from check_decode_packed import check_decode_packed
from check_many import check_many
from check_packed import check_packed
from check_routed import check_routed
from check_spent import check_spent
from launch import Bundle
from layout import PANEL, padded

DEVICE = "cuda"
TYPES = {"bfloat16": (torch.bfloat16, "bf16"), "float16": (torch.float16, "fp16"), "float32": (torch.float32, "fp32")}
# ||out - reference|| / ||reference||. Inputs are rounded before both, so what is left is the rounding of the
# intermediate, of the rows and of the output, and the order of sums.
TOLERANCE = {"bfloat16": 4e-3, "float16": 8e-4, "float32": 2e-5, "tf32": 2e-3}
ALPHA, LIMIT = 1.702, 1.5


def reference_activation(kind, gate, value):
    if kind == "swiglu-clamped":
        gate = gate.clamp(max=LIMIT)
        value = value.clamp(-LIMIT, LIMIT)
        return (value + 1) * gate * torch.sigmoid(ALPHA * gate)
    functions = {
        "none": lambda v: v,
        "relu": torch.relu,
        "silu": torch.nn.functional.silu,
        "gelu": torch.nn.functional.gelu,
        "gelu-tanh": lambda v: torch.nn.functional.gelu(v, approximate="tanh"),
        "sigmoid": torch.sigmoid,
    }
    return functions[kind](gate) if value is None else functions[kind](gate) * value


def relative(out, reference):
    error = (out.double() - reference).norm() / reference.norm().clamp(min=1e-30)
    return error.item() if torch.isfinite(out).all() else float("inf")


class Case:
    """One layer with random weights, its packed form, and its output in float64."""

    def __init__(self, element, experts, top_k, hidden, intermediate, tokens, activation="silu", gated=True,
                 bias=False, input_scale=False, concentrated=False):
        self.__dict__.update({k: v for k, v in locals().items() if k != "self"})
        self.dtype = TYPES[element][0]
        self.short = TYPES[element][1]
        self.parts = 2 if gated else 1

        def draw(*shape, scale=1.0):
            return (torch.randn(*shape, device=DEVICE) * scale).to(self.dtype)

        self.x = draw(tokens, hidden)
        self.first = draw(experts, self.parts, intermediate, hidden, scale=hidden**-0.5)
        self.second = draw(experts, hidden, intermediate, scale=intermediate**-0.5)
        self.first_bias = torch.randn(experts, self.parts, intermediate, device=DEVICE) if bias else None
        self.second_bias = torch.randn(experts, hidden, device=DEVICE) if bias else None
        scores = torch.rand(tokens, experts, device=DEVICE)
        if concentrated:
            scores[:, :top_k] += 1
        self.ids = scores.topk(top_k, dim=1).indices.to(torch.int32)
        self.weights = torch.rand(tokens, top_k, device=DEVICE)
        self.scale = torch.rand(tokens * top_k, device=DEVICE) + 0.5 if input_scale else None
        self.residual = draw(tokens, hidden)
        self.shared = draw(tokens, hidden)
        self.shared_scale = torch.rand(tokens, device=DEVICE)
        self.tokens_device = torch.tensor([tokens], dtype=torch.int32, device=DEVICE)

    def pack(self, bundle, multiprocessors):
        """Through the packing kernel, into memory that holds zeros, as an allocation does."""
        kernel = bundle[f"pack_{self.short}_{self.short}"]
        n, k = self.parts * padded(self.intermediate), padded(self.hidden)
        inner = n // self.parts
        self.w1 = torch.zeros(self.experts, k // PANEL, n, PANEL, device=DEVICE, dtype=self.dtype)
        self.w2 = torch.zeros(self.experts, inner // PANEL, k, PANEL, device=DEVICE, dtype=self.dtype)
        for e in range(self.experts):
            for part in range(self.parts):
                launch.pack_matrix(kernel, self.first[e, part], self.w1[e], part, self.parts, multiprocessors)
            # From a transposed copy: strides are the kernel's business.
            self.turned = self.second[e].t().contiguous()
            launch.pack_matrix(kernel, self.turned.t(), self.w2[e], 0, 1, multiprocessors)
            torch.cuda.synchronize()
        self.x_packed = torch.full((self.tokens, k), float("nan"), device=DEVICE, dtype=self.dtype)
        launch.pack(kernel, self.x, self.x_packed, k, k, multiprocessors)
        self.b1 = self.b2 = None
        if self.bias:
            b1 = torch.zeros(self.experts, padded(self.intermediate), self.parts, device=DEVICE)
            b1[:, : self.intermediate] = self.first_bias.transpose(1, 2)
            self.b1 = b1.reshape(self.experts, -1).contiguous()
            self.b2 = torch.zeros(self.experts, k, device=DEVICE)
            self.b2[:, : self.hidden] = self.second_bias

    def as_rows(self, values):
        """[tokens, hidden] at the pitch of rows, NaN between them: a sum reads its own columns only."""
        rows = nan(self.tokens, padded(self.hidden), dtype=self.dtype)
        rows[:, : self.hidden] = values
        return rows

    def reference_rows(self):
        """[tokens, k, hidden] in float64: each choice's row, unweighted."""
        rows = torch.empty(self.tokens, self.top_k, self.hidden, dtype=torch.float64, device=DEVICE)
        for e in range(self.experts):
            token, choice = (self.ids == e).nonzero(as_tuple=True)
            if token.numel() == 0:
                continue
            x = self.x[token].double()
            parts = [x @ self.first[e, p].double().t() for p in range(self.parts)]
            if self.scale is not None:
                parts = [p * self.scale[token * self.top_k + choice].double()[:, None] for p in parts]
            if self.bias:
                parts = [p + self.first_bias[e, i].double() for i, p in enumerate(parts)]
            inner = reference_activation(self.activation, parts[0], parts[1] if self.gated else None)
            row = inner @ self.second[e].double().t()
            if self.bias:
                row = row + self.second_bias[e].double()
            rows[token, choice] = row
        return rows

    def reference(self, rows, weighted=True, extras=True):
        weights = self.weights.double() if weighted else torch.ones_like(self.weights).double()
        out = (rows * weights[:, :, None]).sum(1)
        if extras:
            out = out + self.shared.double() * self.shared_scale.double()[:, None] + self.residual.double()
        return out


def nan(*shape, dtype):
    return torch.full(shape, float("nan"), device=DEVICE, dtype=dtype)


def names(bundle, case, block_m, precision="ieee"):
    """Kernel names of a case's two products in the class of tiles of block_m rows."""
    short = "tf32" if precision == "tf32" else case.short
    kind = "gated" if case.gated else "plain"
    logistic = case.gated and case.activation in ("silu", "gelu-tanh", "swiglu-clamped")
    if case.element == "float32":
        return f"project_{kind}_coded_extras_{short}_rows{block_m}", f"project_plain_coded_extras_{short}_rows{block_m}"
    second = launch.project_name(bundle, short, False, block_m, padded(case.intermediate), False, bias=case.bias)
    if logistic and case.scale is not None:
        return launch.tall_enough(bundle, f"project_{kind}_logistic_extras_{short}", block_m), second
    if logistic:
        return launch.project_name(bundle, short, True, block_m, padded(case.hidden), True, True, case.bias), second
    # A kernel may be taller than the tiles of its list.
    return launch.tall_enough(bundle, f"project_{kind}_coded_extras_{short}", block_m), second


def run_grouped(bundle, case, block_m, multiprocessors, precision="ieee", out_type=None, shuffle=False, split=False):
    """Through the grouped kernels; returns (summed output, expert rows by slot)."""
    first, second = names(bundle, case, block_m, precision)
    slots = case.tokens * case.top_k
    inner = nan(slots, padded(case.intermediate), dtype=case.dtype)
    rows = nan(slots, padded(case.hidden), dtype=case.dtype)
    # `split` makes every tile a row shorter than it could be: tiles and neighbours change, bits must not.
    used = max(1, block_m - 1) if split else block_m
    for kernel, x, w, bias, out, gather in (
        (first, case.x_packed, case.w1, case.b1, inner, True),
        (second, inner, case.w2, case.b2, rows, False),
    ):
        buckets = Buckets(case.ids, case.experts, lambda count: used)
        tiles, number = buckets.tiles[used], buckets.tile_counts[used]
        if shuffle:
            tiles = tiles[torch.randperm(len(tiles), device=DEVICE)].contiguous()
            # A group is of neighbours.
            tiles[:, 3] = groups(1)[0]
            # Nor does it matter how many are said to be of busy experts.
            number = list_counts(len(tiles), random.randrange(len(tiles) + 1), DEVICE)
        launch.project(
            bundle, bundle[kernel], x, w, out, with_room(tiles), number, most_tiles=len(tiles) + SPARE_TILES,
            multiprocessors=multiprocessors, activation=case.activation if gather else "none", order=buckets.order,
            gather=gather, top_k=case.top_k, bias=bias, input_scale=case.scale if gather else None,
            read_once=random.random() < 0.5, alpha=ALPHA, limit=LIMIT,
        )
    out_type = out_type or case.element
    out_dtype, out_short = TYPES[out_type]
    out = nan(case.tokens, case.hidden, dtype=out_dtype)
    aligned = "" if case.hidden % 16 == 0 else "_any"
    launch.combine(
        bundle, bundle[f"combine_{case.short}_{out_short}{aligned}"], rows, buckets.inverse, out, case.tokens_device,
        most_tokens=case.tokens, top_k=case.top_k, multiprocessors=multiprocessors, weights=case.weights,
        shared=case.as_rows(case.shared), shared_scale=case.shared_scale, residual=case.as_rows(case.residual),
    )
    side = nan(case.tokens, case.top_k * case.hidden, dtype=out_dtype)
    launch.combine(
        bundle, bundle[f"concat_{case.short}_{out_short}{aligned}"], rows, buckets.inverse, side, case.tokens_device,
        most_tokens=case.tokens, top_k=case.top_k, multiprocessors=multiprocessors, weights=case.weights,
    )
    return out, side, rows, buckets.inverse


def run_decode(bundle, case, out_type=None, extras=True):
    """Through the decode kernels; returns the output by each of the second one's tiles, by the kernels' names."""
    slots = case.tokens * case.top_k
    kind = "gated" if case.gated else "plain"
    logistic = case.gated and case.activation in ("silu", "gelu-tanh", "swiglu-clamped")
    out_dtype, out_short = TYPES[out_type or case.element]
    outs = {}
    first = launch.decode_first_name(bundle, f"{kind}_{'logistic' if logistic else 'coded'}", case.short)
    inner = nan(slots, padded(case.intermediate), dtype=case.dtype)
    launch.decode_first(
        bundle, bundle[first], case.x_packed, case.w1, inner, case.ids, case.tokens_device, slots=slots,
        top_k=case.top_k, activation=case.activation, bias=case.b1, input_scale=case.scale,
        read_once=random.random() < 0.5, alpha=ALPHA, limit=LIMIT,
    )
    for second in launch.decode_second_names(bundle, case.short, out_short, padded(case.intermediate)):
        out = outs[f"{first}, {second}"] = nan(case.tokens, case.hidden, dtype=out_dtype)
        launch.decode_second(
            bundle, bundle[second], inner, case.w2, case.ids, out, case.tokens_device,
            most_tokens=case.tokens, top_k=case.top_k, weights=case.weights, bias=case.b2,
            shared=case.as_rows(case.shared) if extras else None,
            shared_scale=case.shared_scale if extras else None,
            residual=case.as_rows(case.residual) if extras else None,
            read_once=random.random() < 0.5,
        )
    return outs


class Checks:
    def __init__(self):
        self.failures = []
        self.worst = {}
        self.count = 0

    def error(self, what, group, value, limit):
        self.count += 1
        self.worst[group] = max(self.worst.get(group, 0.0), value)
        if not value <= limit:
            self.failures.append(f"{what}: relative error {value:.2e} > {limit:.0e}")

    def that(self, what, holds):
        self.count += 1
        if not holds:
            self.failures.append(what)

    def same(self, what, a, b):
        self.count += 1
        if not torch.equal(a.view(torch.uint8), b.view(torch.uint8)):
            self.failures.append(f"{what}: bits differ")


def check_case(checks, bundle, case, multiprocessors, classes, precision="ieee"):
    case.pack(bundle, multiprocessors)
    tolerance = TOLERANCE["tf32" if precision == "tf32" else case.element]
    label = (
        f"{case.element}/{precision} E{case.experts} k{case.top_k} H{case.hidden} I{case.intermediate} T{case.tokens}"
        f" {case.activation}{' gated' if case.gated else ''}{' bias' if case.bias else ''}"
    )
    rows = case.reference_rows()
    wanted = case.reference(rows)
    weighted = (rows * case.weights.double()[:, :, None]).reshape(case.tokens, -1)
    for block_m in classes:
        out_type = random.choice([case.element, "float32"])
        out, side, raw, inverse = run_grouped(bundle, case, block_m, multiprocessors, precision, out_type)
        # By slot: each choice's row on its own, so that no sum hides a wrong one.
        by_slot = raw[inverse.long(), : case.hidden].reshape(case.tokens, case.top_k, case.hidden)
        checks.error(f"{label} rows{block_m} expert rows", f"rows{block_m} {precision}", relative(by_slot, rows), tolerance)
        checks.error(f"{label} rows{block_m} sum", f"combine {precision}", relative(out, wanted), tolerance)
        checks.error(f"{label} rows{block_m} concat", f"concat {precision}", relative(side, weighted), tolerance)
        few = random.randrange(1, 9)
        again = run_grouped(bundle, case, block_m, few, precision, out_type, shuffle=True, split=True)
        checks.same(f"{label} rows{block_m} on {few} multiprocessors, other tiles", out, again[0])
    if case.tokens <= 4 and precision == "ieee":
        for out_type in dict.fromkeys((case.element, "float32")):
            again = run_decode(bundle, case, out_type)
            for name, out in run_decode(bundle, case, out_type).items():
                checks.error(f"{label} {name}", "decode", relative(out, wanted), tolerance)
                checks.same(f"{label} {name} again", out, again[name])


def check_dense(checks, bundle, multiprocessors):
    """A shared expert: all rows through one matrix, the count of rows read from the device."""
    case = Case("bfloat16", 3, 1, 256, 192, 200)
    case.pack(bundle, multiprocessors)
    kernel = bundle["project_gated_logistic_bf16_rows64"]
    out = nan(case.tokens, case.w2.shape[2], dtype=case.dtype)
    launch.project(
        bundle, kernel, case.x_packed, case.w1, out, None, case.tokens_device, most_tiles=4,
        multiprocessors=multiprocessors, activation="silu", dense=True, matrix=2,
    )
    gate, value = (case.x.double() @ case.first[2, p].double().t() for p in range(2))
    checks.error("dense", "dense", relative(out[:, :192], reference_activation("silu", gate, value)), TOLERANCE["bfloat16"])


def check_dropped(checks, bundle, multiprocessors):
    """Slots dropped for want of capacity add nothing, whatever their rows and weights hold."""
    case = Case("bfloat16", 8, 4, 256, 128, 3)
    case.pack(bundle, multiprocessors)
    rows = case.reference_rows()
    kept = torch.rand(3, 4, device=DEVICE) < 0.5
    wanted = (rows * (case.weights.double() * kept)[:, :, None]).sum(1)
    case.ids = torch.where(kept, case.ids, -1)
    # What a dropped slot weighs must not matter, not even if it is no number.
    weights, case.weights = case.weights, torch.where(kept, case.weights, float("nan"))
    outs = run_decode(bundle, case, extras=False)
    case.weights = weights
    for name, out in outs.items():
        if wanted.norm() > 0:
            checks.error(f"dropped, {name}", "dropped", relative(out, wanted), TOLERANCE["bfloat16"])
    raw = rows.reshape(12, 256).to(torch.bfloat16)
    inverse = torch.where(kept.flatten(), torch.arange(12, device=DEVICE), -1).to(torch.int32)
    summed = nan(3, 256, dtype=torch.float32)
    launch.combine(bundle, bundle["combine_bf16_fp32"], raw, inverse, summed, case.tokens_device, most_tokens=3, top_k=4,
                   multiprocessors=multiprocessors, weights=case.weights)
    if wanted.norm() > 0:
        checks.error("dropped, combine", "dropped", relative(summed, wanted), TOLERANCE["bfloat16"])


def check_fewer_tokens(checks, bundle, multiprocessors):
    """Rows past the token count are not touched."""
    case = Case("float16", 8, 2, 128, 128, 4)
    case.pack(bundle, multiprocessors)
    case.tokens_device.fill_(2)
    wanted = case.reference(case.reference_rows(), extras=False)
    for name, out in run_decode(bundle, case, extras=False).items():
        checks.error(f"two of four tokens, {name}", "fewer", relative(out[:2], wanted[:2]), TOLERANCE["float16"])
        checks.that(f"two of four tokens, {name}: rows past the count were written", bool(out[2:].isnan().all()))


def run_all(bundle, seed):
    torch.manual_seed(seed)
    random.seed(seed)
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    checks = Checks()
    for element in ("bfloat16", "float16"):
        all_classes = sorted(
            {k["selects"]["rows_per_tile"] for k in bundle.entries.values()
             if k["selects"]["operator"] == "project" and k["selects"]["element"] == element
             and k["selects"]["activations"] == "logistic"}
        )
        check_case(checks, bundle, Case(element, 16, 4, 512, 384, 300), multiprocessors, all_classes)
        check_case(checks, bundle, Case(element, 128, 8, 2048, 768, 64), multiprocessors, all_classes)
        check_case(checks, bundle, Case(element, 4, 2, 576, 704, 700, "swiglu-clamped", bias=True), multiprocessors, all_classes)
        check_case(checks, bundle, Case(element, 6, 3, 100, 72, 90, "gelu-tanh", input_scale=True), multiprocessors, all_classes)
        check_case(checks, bundle, Case(element, 8, 2, 320, 192, 500, concentrated=True), multiprocessors, all_classes)
        for activation in ("none", "relu", "silu", "gelu", "gelu-tanh", "sigmoid"):
            case = Case(element, 5, 2, random.randrange(33, 300), random.randrange(33, 300), random.randrange(1, 5), activation,
                        gated=False, bias=activation != "none")
            check_case(checks, bundle, case, multiprocessors, all_classes)
            if activation in ("none", "relu", "gelu", "sigmoid"):
                case = Case(element, 5, 2, 130, 200, random.randrange(1, 5), activation, bias=activation == "gelu")
                check_case(checks, bundle, case, multiprocessors, all_classes)
        for gated in (True, False):
            case = Case(element, 3, 2, 192, 320, random.randrange(150, 400), "gelu", gated, input_scale=gated)
            check_case(checks, bundle, case, multiprocessors, all_classes)
        for tokens in (1, 2, 3, 4):
            check_case(checks, bundle, Case(element, 64, 6, 2048, 1408, tokens, bias=tokens == 3, input_scale=tokens == 4),
                       multiprocessors, all_classes[:1])
    for precision in ("ieee", "tf32"):
        for activation, gated in (("silu", True), ("gelu", True), ("relu", False), ("swiglu-clamped", True)):
            case = Case("float32", 7, 2, random.randrange(40, 400), random.randrange(40, 400), random.choice([3, 77]), activation,
                        gated, bias=True)
            check_case(checks, bundle, case, multiprocessors, [16, 64], precision)
    check_many(checks, bundle, multiprocessors)
    check_packed(checks, bundle, multiprocessors)
    check_decode_packed(checks, bundle, multiprocessors)
    check_routed(checks, bundle, multiprocessors)
    check_spent(checks, bundle, multiprocessors)
    check_dense(checks, bundle, multiprocessors)
    check_dropped(checks, bundle, multiprocessors)
    check_fewer_tokens(checks, bundle, multiprocessors)
    return checks


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bundle", default=Path(__file__).resolve().parent / "bundle")
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    torch.zeros(1, device=DEVICE)
    started = time.time()
    checks = run_all(Bundle(options.bundle), options.seed)
    for group, value in sorted(checks.worst.items()):
        print(f"worst relative error, {group}: {value:.2e}")
    print("\n".join(checks.failures))
    print(f"{checks.count} checks, {len(checks.failures)} failed, {time.time() - started:.1f} s")
    sys.exit(1 if checks.failures else 0)


if __name__ == "__main__":
    main()
