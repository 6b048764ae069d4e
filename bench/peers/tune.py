"""Searches widely for tiles of the two Triton schedules and writes the best ones down, as vLLM's own tuner does for its tables.

    python bench/peers/tune.py bench/peers/tuned/CARD.json [SHAPE...]   # a JSON list of shapes on standard input: ../method.md has the command

CARD is the part of the card's name by which tile_tables.py knows it, such as h200. Cells of shapes that are not searched stay in the file.

Not part of a comparison: there every cell chooses among a handful of tiles (tile_tables.py), of which the best ones here are some.
Every tile that is tried has its output checked, as in a comparison. After --seconds no further cell is begun.
"""

import argparse
import gc
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path

import torch

from block_aligned import BlockAligned
from contender import contender_of
from layer import draw_batch, make_layer, reference
from peer import Setting, Shape
from scatter import Scatter
from tile_tables import TUNED_KEPT, cells_of, distinct, fits, is_of

# (tokens, routing): below 256 tokens what is best hardly depends on the routing, from 4096 on neither on it nor on the tokens.
CELLS = [
    (1, "uniform"), (4, "uniform"), (16, "uniform"), (64, "uniform"),
    (256, "uniform"), (256, "zipf:1.5"), (1024, "uniform"), (1024, "zipf:1.5"), (4096, "uniform"),
]  # fmt: skip
# With fewer tokens the other schedule, which then sorts nothing, is faster everywhere.
SCATTER_FROM = 16
COLUMNS_DEPTH_WARPS = [
    (32, 64, 4), (32, 128, 4), (32, 256, 4), (64, 64, 4), (64, 128, 4), (64, 256, 4), (128, 64, 4), (128, 64, 8), (128, 128, 4),
    (128, 128, 8), (128, 256, 8), (256, 64, 8), (256, 128, 8),
]  # fmt: skip
STAGES = (2, 3, 4, 5)
GROUPS = (1, 16)
SEED = 1


def heights(rows: float) -> tuple[int, ...]:
    """Rows of a tile worth trying where an expert has so many on average."""
    if rows <= 4:
        return (16,)
    if rows <= 16:
        return (16, 32)
    if rows <= 48:
        return (32, 64)
    return (64, 128) if rows <= 256 else (128,)


def stages_of(block_m: int, block_n: int, block_k: int) -> list[int]:
    """The two deepest pipelines that shared memory has room for: shallower ones have less on its way."""
    return [s for s in STAGES if fits(block_m, block_n, block_k, s)][-2:]


def wide(shape: Shape, tokens: int, grouped: bool) -> list[Setting]:
    rows = tokens * shape.top_k / shape.experts
    settings = []
    for block_m in heights(rows):
        for block_n, block_k, warps in COLUMNS_DEPTH_WARPS:
            if block_m >= 64 and (block_n < 128 or block_k > 128):
                continue
            for stages in stages_of(block_m, block_n, block_k):
                tile = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "num_warps": warps, "num_stages": stages}
                # Neighbouring blocks are of one expert, and share weights, only where experts have several.
                for group in GROUPS if grouped and rows > block_m else (1,):
                    settings.append({**tile, "GROUP_M": group} if grouped else tile)
    return settings


class Wide:
    """A schedule with its usual candidates and many more."""

    def usual(self, shape: Shape, tokens: int) -> list[Setting]:
        return super().candidates(shape, tokens)

    def candidates(self, shape: Shape, tokens: int) -> list[Setting]:
        return distinct(self.usual(shape, tokens) + wide(shape, tokens, isinstance(self, BlockAligned)))


class WideAligned(Wide, BlockAligned):
    pass


class WideScatter(Wide, Scatter):
    pass


PEERS = [WideAligned(), WideScatter()]


def batches_for(tokens: int) -> int:
    return 2 if tokens <= 4 else 1


def tune(peer, layer, tokens: int, routing: str) -> dict:
    """A cell of the file. `usual` is the time of the best of those tiles that a comparison would have chosen among, earlier searches' included."""
    generator = torch.Generator("cuda").manual_seed(SEED)
    batches = [draw_batch(layer.shape, tokens, routing, generator) for _ in range(batches_for(tokens))]
    expected = [reference(layer, batch) for batch in batches]
    usual = peer.usual(layer.shape, tokens)
    timed, refused = [], 0
    for setting in peer.candidates(layer.shape, tokens):
        try:
            took = contender_of(peer, layer, batches, expected, "graph", setting).trial()
        except Exception:
            refused += 1
            torch.cuda.empty_cache()
            continue
        timed.append((took, setting))
    timed.sort(key=lambda each: each[0])
    return {
        "peer": peer.name, "shape": layer.shape.name, "tokens": tokens, "routing": routing, "tried": len(timed), "refused": refused,
        "usual": round(min(took for took, setting in timed if setting in usual), 2),
        "best": [{"us": round(took, 2), "setting": setting} for took, setting in timed[:TUNED_KEPT]],
    }  # fmt: skip


def write(out: Path, cells: list[dict]) -> None:
    """A line for each cell, so that a later search shows what it changed."""
    head = f'"device": {json.dumps(torch.cuda.get_device_name(0))},\n  "date": "{date.today()}"'
    lines = ",\n".join(f"    {json.dumps(cell)}" for cell in cells)
    out.write_text(f'{{\n  {head},\n  "cells": [\n{lines}\n  ]\n}}\n')


def _run(job) -> None:
    try:
        job()
    except Exception:
        # Too much shared memory, say: the trial will find out as well.
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("shapes", nargs="*")
    parser.add_argument("--seconds", type=float, default=1e9)
    options = parser.parse_args()
    card = torch.cuda.get_device_name(0)
    if not is_of(options.out, card):
        parser.error(f"{options.out.name} is not named after this card, {card}")
    if not options.out.parent.is_dir():
        parser.error(f"{options.out.parent} is not a folder")
    began = time.monotonic()
    described = [{k: v for k, v in each.items() if k != "note"} for each in json.load(sys.stdin)]
    shapes = [Shape(s["name"], s["experts"], s["topK"], s["hidden"], s["intermediate"], s["renormalize"]) for s in described]
    shapes.sort(key=lambda shape: options.shapes.index(shape.name) if shape.name in options.shapes else len(options.shapes))
    if options.shapes:
        shapes = [shape for shape in shapes if shape.name in options.shapes]
    tokens = sorted({count for count, _ in CELLS})
    jobs = {}
    for shape in shapes:
        for peer in PEERS:
            for job in peer.compile_jobs(shape, tokens):
                jobs.setdefault(repr(job), job)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        list(pool.map(_run, jobs.values(), chunksize=4))
    print(f"[{time.monotonic() - began:.0f} s] {len(jobs)} kernels compiled", flush=True)
    # Every capture collects garbage: only that of its own time.
    gc.collect()
    gc.freeze()
    searched = [shape.name for shape in shapes]
    before = cells_of(options.out) if options.out.exists() else []
    cells = [cell for cell in before if cell["shape"] not in searched]
    for shape in shapes:
        layer = make_layer(shape, SEED)
        for count, routing in CELLS:
            for peer in PEERS:
                if time.monotonic() - began > options.seconds or (isinstance(peer, Scatter) and count < SCATTER_FROM):
                    continue
                cell = tune(peer, layer, count, routing)
                cells.append(cell)
                best = cell["best"][0]
                print(
                    f"[{time.monotonic() - began:.0f} s] {cell['peer']} {shape.name} {count} {routing}: {cell['usual']:.1f} to"
                    f" {best['us']:.1f} us, {cell['tried']} tiles, {tuple(best['setting'].values())}",
                    flush=True,
                )
        del layer
        torch.cuda.empty_cache()
        write(options.out, cells)


if __name__ == "__main__":
    main()
