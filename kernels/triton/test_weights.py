"""Checks the kernels that write weights and rows, pack and fill_uniform, on a GPU.

    python test_weights.py [--bundle DIR] [--seed N]

Shapes and strides are random, outputs poisoned with NaN before every run. The seed is printed. Exit code 1 on any failure.
"""

import argparse
import random
import sys
import time
from pathlib import Path

import torch

import launch
from launch import Bundle
from layout import PANEL, padded, paneled
from test_experts import DEVICE, TYPES, Checks, nan


def check_pack(checks, bundle, source, destination, multiprocessors):
    """Every pair of types, from strided memory: conversion is the type's own, padding is zero, other rows are not touched."""
    rows, columns, parts = random.randrange(1, 80), random.randrange(1, 3000), random.choice([1, 2])
    pitch = padded(columns)
    values = torch.randn(2 * columns, rows, device=DEVICE).to(TYPES[source][0])[::2].t()
    out = nan(rows, parts, pitch, dtype=TYPES[destination][0])
    kernel = bundle[f"pack_{TYPES[source][1]}_{TYPES[destination][1]}"]
    launch.pack(kernel, values, out, parts * pitch, pitch, random.choice([1, multiprocessors]))
    label = f"pack {source} to {destination}, {rows} x {columns}"
    checks.same(label, out[:, 0, :columns].contiguous(), values.to(out.dtype).contiguous())
    checks.that(f"{label}: padding is not zero", bool((out[:, 0, columns:] == 0).all()))
    checks.that(f"{label}: rows in between were written", bool(out[:, 1:].isnan().all()))


def check_pack_panels(checks, bundle, element, multiprocessors):
    """A stretch of a matrix's columns into its panels: in place, and nothing else is touched."""
    rows, columns, parts = random.randrange(1, 80), random.randrange(1, 700), random.choice([1, 2])
    n, first = parts * padded(rows), random.randrange(300)
    dtype, short = TYPES[element]
    values = torch.randn(rows, columns, device=DEVICE).to(dtype)
    out = nan(1, padded(first + columns) // PANEL, n, PANEL, dtype=dtype)
    wanted = nan(1, n, padded(first + columns), dtype=dtype)
    part = random.randrange(parts)
    wanted[0, part : parts * rows : parts, first : first + columns] = values
    launch.pack(
        bundle[f"pack_{short}_{short}"], values, out[0, 0, part], parts * PANEL, columns,
        random.choice([1, multiprocessors]), panel_step=n * PANEL, first_column=first,
    )
    checks.same(f"pack {element} into panels, {rows} x {columns} from column {first}", out, paneled(wanted))


def philox(seed, element):
    """The first of Philox4x32-10's four outputs for int64 counters, as int64 in [0, 2**32)."""
    low = 0xFFFFFFFF

    def high(a, b):
        # The product may wrap; its bits are right.
        return ((a * b) >> 32) & low

    c0, c1 = element & low, (element >> 32) & low
    c2 = c3 = torch.zeros_like(element)
    k0, k1 = seed & low, (seed >> 32) & low
    for _ in range(10):
        c0, c1, c2, c3 = (
            high(c2, 0xCD9E8D57) ^ c1 ^ k0,
            (c2 * 0xCD9E8D57) & low,
            high(c0, 0xD2511F53) ^ c3 ^ k1,
            (c0 * 0xD2511F53) & low,
        )
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return c0


def reference_noise(seed, scale, element):
    bits = philox(seed, element)
    signed = torch.where(bits >= 2**31, bits - 2**32, bits)
    return (torch.where(signed < 0, -signed - 1, signed).double() * 2**-30 - 1) * scale


def check_fill(checks, bundle, element, multiprocessors):
    """Values against Philox written out, whatever the grid and wherever they lie; padding as it was."""
    matrices, parts = random.randrange(1, 5), random.choice([1, 2])
    outputs, inputs = random.randrange(1, 200), random.randrange(1, 2500)
    seed, scale = random.randrange(2**53), random.uniform(0.01, 2)
    n, k, valid_rows = parts * padded(outputs), padded(inputs), parts * outputs
    dtype, short = TYPES[element]
    out = nan(matrices, n, k, dtype=dtype)
    launch.fill_uniform(bundle[f"fill_uniform_{short}"], out, seed, scale, valid_rows, inputs, multiprocessors)
    label = f"fill {element} {matrices} x {valid_rows} of {n} x {inputs} of {k}"
    at = torch.arange(out.numel(), device=DEVICE).reshape(out.shape)[:, :valid_rows, :inputs]
    noise = reference_noise(seed, scale, at)
    found = out[:, :valid_rows, :inputs]
    # A rounding of the stored type, and some of float32 on the way, relative to the range.
    error = ((found.double() - noise).abs().max() / scale).item()
    checks.error(label, f"fill {element}", error, {"bfloat16": 2**-7, "float16": 2**-10, "float32": 2**-21}[element])
    checks.that(f"{label}: outside [-scale, scale]", bool((found.double().abs() <= scale * (1 + 2**-8)).all()))
    checks.that(f"{label}: padding was written", bool(out[:, valid_rows:].isnan().all() and out[:, :, inputs:].isnan().all()))
    again = nan(matrices, n, k, dtype=dtype)
    launch.fill_uniform(bundle[f"fill_uniform_{short}"], again, seed, scale, valid_rows, inputs, 1)
    checks.same(f"{label}, another grid", out, again)
    in_panels = nan(matrices, k // PANEL, n, PANEL, dtype=dtype)
    launch.fill_uniform(bundle[f"fill_uniform_{short}"], in_panels, seed, scale, valid_rows, inputs, multiprocessors)
    checks.same(f"{label}, in panels", in_panels, paneled(out))


def check_fill_far(checks, bundle, multiprocessors):
    """Elements past 2**32, in a matrix of 12 GiB of which little is filled."""
    out = torch.zeros(3, 2**16, 2**15, device=DEVICE, dtype=torch.bfloat16)
    launch.fill_uniform(bundle["fill_uniform_bf16"], out, 7, 1.0, 2, 100, multiprocessors)
    at = torch.arange(100, device=DEVICE)[None, None, :] + torch.arange(2, device=DEVICE)[None, :, None] * 2**15
    at = at + torch.arange(3, device=DEVICE)[:, None, None] * 2**31
    error = (out[:, :2, :100].double() - reference_noise(7, 1.0, at)).abs().max().item()
    checks.error("fill past 2**32", "fill bfloat16", error, 2**-8)
    checks.that("fill past 2**32: matrices are alike", not torch.equal(out[0, :2, :100], out[2, :2, :100]))


def run_all(bundle, seed):
    torch.manual_seed(seed)
    random.seed(seed)
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    checks = Checks()
    for source in TYPES:
        for destination in TYPES:
            for _ in range(4):
                check_pack(checks, bundle, source, destination, multiprocessors)
    for element in TYPES:
        for _ in range(4):
            check_pack_panels(checks, bundle, element, multiprocessors)
            check_fill(checks, bundle, element, multiprocessors)
    check_fill_far(checks, bundle, multiprocessors)
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
        print(f"worst error, {group}: {value:.2e}")
    print("\n".join(checks.failures))
    print(f"{checks.count} checks, {len(checks.failures)} failed, {time.time() - started:.1f} s")
    sys.exit(1 if checks.failures else 0)


if __name__ == "__main__":
    main()
