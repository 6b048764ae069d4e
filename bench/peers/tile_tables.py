"""Which tiles the block-aligned schedule may run with: vLLM's published tables, its default rule, what tune.py found, and a few more.

Not the choice itself, which is by time, for every shape, token count and routing: this only says what is worth timing.
One setting serves both products, as in vLLM.
"""

import json
from functools import cache
from pathlib import Path

from peer import Setting, Shape

FIELDS = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M", "num_warps", "num_stages")
Tile = tuple[int, int, int, int, int, int]

# vLLM's tuned settings for bfloat16, by (experts, intermediate size) and then tokens: a file for each card in
# vllm/model_executor/layers/fused_moe/configs. Shapes without one run on the default rule.
Tables = dict[tuple[int, int], dict[int, Tile]]
H100: Tables = {
    (128, 768): {
        1: (16, 32, 64, 1, 4, 4),
        2: (16, 64, 64, 32, 4, 3),
        4: (16, 128, 64, 1, 4, 4),
        8: (16, 64, 64, 64, 4, 5),
        16: (16, 32, 256, 64, 4, 2),
        24: (16, 64, 128, 16, 4, 3),
        32: (16, 32, 128, 1, 4, 5),
        48: (16, 64, 128, 1, 4, 3),
        64: (16, 256, 128, 1, 8, 3),
        96: (16, 128, 128, 1, 4, 2),
        128: (16, 256, 128, 1, 8, 2),
        256: (32, 256, 128, 1, 8, 3),
        512: (64, 128, 64, 1, 4, 3),
        1024: (64, 256, 64, 1, 8, 5),
        1536: (128, 256, 64, 1, 8, 4),
        2048: (128, 256, 64, 1, 8, 4),
        3072: (128, 256, 64, 1, 8, 4),
        4096: (128, 256, 64, 1, 8, 4),
    },
}
H200: Tables = {
    (128, 768): {
        1: (16, 64, 64, 1, 4, 5),
        2: (16, 64, 64, 1, 4, 4),
        4: (16, 64, 128, 16, 4, 2),
        8: (16, 64, 128, 1, 4, 3),
        16: (16, 64, 256, 1, 4, 2),
        24: (16, 64, 128, 1, 4, 4),
        32: (16, 64, 128, 16, 4, 2),
        48: (16, 128, 128, 16, 4, 3),
        64: (16, 256, 128, 1, 8, 2),
        96: (16, 128, 128, 1, 4, 2),
        128: (16, 128, 128, 1, 4, 2),
        256: (32, 256, 128, 16, 4, 2),
        512: (64, 128, 64, 1, 4, 3),
        1024: (128, 256, 64, 16, 8, 4),
        1536: (128, 256, 64, 1, 8, 4),
        2048: (128, 256, 64, 1, 8, 4),
        3072: (128, 256, 64, 1, 8, 4),
        4096: (128, 256, 64, 16, 8, 4),
    },
    (8, 14336): {
        1: (16, 128, 128, 16, 4, 5),
        2: (32, 64, 128, 1, 4, 5),
        4: (16, 64, 64, 1, 4, 5),
        8: (16, 128, 128, 1, 4, 5),
        16: (16, 64, 256, 16, 4, 3),
        24: (16, 128, 256, 16, 4, 2),
        32: (16, 128, 128, 16, 8, 3),
        48: (32, 128, 128, 16, 4, 3),
        64: (32, 128, 128, 64, 4, 3),
        96: (32, 128, 128, 64, 4, 3),
        128: (64, 128, 128, 1, 8, 4),
        256: (128, 256, 64, 1, 8, 4),
        512: (128, 256, 64, 16, 8, 4),
        1024: (128, 256, 64, 16, 8, 4),
        1536: (128, 256, 64, 16, 8, 4),
        2048: (128, 256, 64, 32, 8, 4),
        3072: (128, 256, 64, 16, 8, 4),
        4096: (128, 256, 64, 16, 8, 4),
    },
}

# Guesses, by the most rows that an expert has on average.
BY_ROWS: list[tuple[float, list[Tile]]] = [
    (8, [(16, 64, 128, 1, 4, 4), (16, 64, 64, 1, 4, 5), (16, 128, 128, 1, 4, 3), (16, 256, 128, 1, 8, 2)]),
    (32, [(16, 128, 128, 1, 4, 3), (32, 128, 128, 16, 4, 3), (16, 256, 128, 1, 8, 2)]),
    (96, [(64, 128, 64, 1, 4, 3), (32, 128, 128, 16, 4, 3), (128, 256, 64, 16, 8, 4)]),
    (float("inf"), [(128, 256, 64, 16, 8, 4), (128, 256, 64, 1, 8, 4), (64, 256, 64, 1, 8, 4)]),
]
# Routing is skewed, so from so many tokens on some experts have far more rows than the average, and others far fewer:
# a tile of 64 rows and one of 128 are then always among the candidates.
BOTH_HEIGHTS_FROM = 256
HIGH: Tile = (128, 256, 64, 16, 8, 4)
MIDDLE: Tile = (64, 128, 64, 1, 4, 3)
# Two published tiles, the best of two routings on two cards, and both heights.
MOST_CANDIDATES = 8
# Most settings that tune.py keeps of a cell.
TUNED_KEPT = 3


# Bytes of shared memory that a block of Hopper's may have.
SHARED_BYTES = 227 * 1024


def fits(block_m: int, block_n: int, block_k: int, stages: int) -> bool:
    """Whether so many stages of both operands, two bytes an element, find room."""
    return stages * (block_m + block_n) * block_k * 2 <= SHARED_BYTES


def default_tile(shape: Shape, tokens: int) -> Tile:
    """What vLLM runs where it has no table."""
    rows = 16 if tokens <= 32 else 32 if tokens <= 96 else 64 if tokens <= 512 else 128
    columns, depth = (64, 128) if tokens <= 64 else (128, 64)
    group = 16 if tokens // shape.experts > 128 else 1
    return rows, columns, depth, group, 4 if tokens <= 128 else 8, 4 if tokens <= 32 else 3


def is_of(path: Path, card: str) -> bool:
    """Whether a file in tuned/ is of a card that CUDA gives this name."""
    return path.stem.upper() in card.upper()


def cells_of(path: Path) -> list[dict]:
    return json.loads(path.read_text())["cells"]


@cache
def _tuned_cells(card: str) -> list[list[dict]]:
    """The cells of every file in tuned/, a list for each: of such a card first."""
    paths = sorted((Path(__file__).parent / "tuned").glob("*.json"), key=lambda path: (not is_of(path, card), path.stem))
    return [cells_of(path) for path in paths]


def tuned(peer: str, shape: Shape, tokens: int, card: str) -> tuple[list[Setting], list[Setting]]:
    """What tune.py found for a peer on this shape at the nearest token count: the best of every card and routing, and then the second and
    third best. Both empty where it did not look."""
    found = []
    for every in _tuned_cells(card):
        cells = [cell for cell in every if cell["peer"] == peer and cell["shape"] == shape.name]
        if cells and tokens >= min(cell["tokens"] for cell in cells):
            nearest = min((cell["tokens"] for cell in cells), key=lambda count: abs(count - tokens))
            found += [[each["setting"] for each in cell["best"]] for cell in cells if cell["tokens"] == nearest]
    others = [best[place] for place in range(1, TUNED_KEPT) for best in found if place < len(best)]
    return [best[0] for best in found], others


def candidates(shape: Shape, tokens: int, card: str) -> list[Setting]:
    """First what vLLM itself would run: the entry for the nearest token count in its table for this card, or its default.

    `card` is the name that CUDA gives it.
    """
    own, other = (H200, H100) if "H200" in card else (H100, H200)
    published, elsewhere = (_entry(tables.get((shape.experts, shape.intermediate)), tokens) for tables in (own, other))
    best, others = tuned("vllm-schedule", shape, tokens, card)
    heights = [HIGH, MIDDLE] if tokens >= BOTH_HEIGHTS_FROM else []
    likely = _settings(published or default_tile(shape, tokens), elsewhere)
    guesses = _settings(*_by_rows(shape, tokens))
    return distinct([*likely, *best, *_settings(*heights), *others, *guesses])[:MOST_CANDIDATES]


def distinct(settings: list[Setting]) -> list[Setting]:
    return [setting for place, setting in enumerate(settings) if setting not in settings[:place]]


def _settings(*tiles: Tile | None) -> list[Setting]:
    return [dict(zip(FIELDS, tile)) for tile in tiles if tile is not None]


def _entry(table: dict[int, Tile] | None, tokens: int) -> Tile | None:
    return table[min(table, key=lambda count: abs(count - tokens))] if table else None


def _by_rows(shape: Shape, tokens: int) -> list[Tile]:
    rows = tokens * shape.top_k / shape.experts
    return next(tiles for most, tiles in BY_ROWS if rows <= most)
