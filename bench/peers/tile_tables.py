"""Which tiles the block-aligned schedule may run with: vLLM's published tables, its default rule, and a few more.

Not the choice itself, which is by time, for every shape, token count and routing: this only says what is worth timing.
One setting serves both products, as in vLLM.
"""

from peer import Setting, Shape

FIELDS = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M", "num_warps", "num_stages")
Tile = tuple[int, int, int, int, int, int]

# vLLM's tuned settings for NVIDIA H200 and bfloat16, by (experts, intermediate size) and then tokens. A file each in
# vllm/model_executor/layers/fused_moe/configs; shapes without one run on the default rule.
H200: dict[tuple[int, int], dict[int, Tile]] = {
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

# For shapes without a table, by the most rows that an expert has on average.
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
MOST_CANDIDATES = 5


def default_tile(shape: Shape, tokens: int) -> Tile:
    """What vLLM runs where it has no table."""
    rows = 16 if tokens <= 32 else 32 if tokens <= 96 else 64 if tokens <= 512 else 128
    columns, depth = (64, 128) if tokens <= 64 else (128, 64)
    group = 16 if tokens // shape.experts > 128 else 1
    return rows, columns, depth, group, 4 if tokens <= 128 else 8, 4 if tokens <= 32 else 3


def candidates(shape: Shape, tokens: int) -> list[Setting]:
    """First what vLLM itself would run: its table's entry for the nearest token count, or its default."""
    table = H200.get((shape.experts, shape.intermediate))
    tiles = _from_table(table, tokens) if table else _without_table(shape, tokens)
    if tokens >= BOTH_HEIGHTS_FROM:
        for tile in (HIGH, MIDDLE):
            if all(tile[0] != other[0] for other in tiles):
                tiles.append(tile)
    return [dict(zip(FIELDS, tile)) for tile in list(dict.fromkeys(tiles))[:MOST_CANDIDATES]]


def _from_table(table: dict[int, Tile], tokens: int) -> list[Tile]:
    """The entry for the nearest token count, then the nearest other tiles for fewer and for more tokens."""
    nearest = min(table, key=lambda count: abs(count - tokens))
    others = {count: tile for count, tile in table.items() if tile != table[nearest]}
    fewer, more = [n for n in others if n < nearest], [n for n in others if n > nearest]
    return [table[nearest], *(others[n] for n in fewer[-1:] + more[:1])]


def _without_table(shape: Shape, tokens: int) -> list[Tile]:
    rows = tokens * shape.top_k / shape.experts
    return [default_tile(shape, tokens), *next(tiles for most, tiles in BY_ROWS if rows <= most)]
