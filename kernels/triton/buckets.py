"""What the routing kernels leave in device memory, made with PyTorch: rows sorted by expert, work lists of tiles and their counts.

For tests and benchmarks of the products by themselves, and to hold the bucket kernel against. It launches nothing; launch.py does.
"""

from collections import Counter

import torch

# As src/execution/cuda/operators/lists.ts has it.
MOST_TILES_TOGETHER = 16
# As routing/bucket.py has them.
SKEWED, SKEWED_BY = 3, 2
SKEWED_SHARE = 8
BUSY_HEIGHT = 128
COUNT_WORDS, BEGUN = 4, 2


def groups(pieces, most=MOST_TILES_TOGETHER):
    """The last word of each of an expert's tiles: its place in its group, and how many tiles that has."""
    size = -(-pieces // max(1, -(-pieces // most)))
    return [i % size | min(size, pieces - i + i % size) << 16 for i in range(pieces)]


def busy_first(tiles, height):
    """One list's tiles in the order that the bucket kernel writes, and how many are of busy experts.

    `tiles` are given expert after expert and have `height` rows.
    """
    pieces = Counter(expert for expert, *_ in tiles)
    used, total = len(pieces), len(tiles)
    busy = {expert for expert, count in pieces.items() if count * used > total}
    of_skewed = sum(count for count in pieces.values() if SKEWED_BY * count * used > SKEWED * total)
    if height < BUSY_HEIGHT or SKEWED_SHARE * of_skewed < total:
        return tiles, 0
    # Stable: experts by number, tiles of an expert as they were.
    return sorted(tiles, key=lambda tile: tile[0] not in busy), sum(pieces[expert] for expert in busy)


def list_counts(tiles, busy, device):
    """A list's counts as the bucket kernel leaves them: nothing has been begun."""
    return torch.tensor([tiles, busy, *[0] * (COUNT_WORDS - BEGUN)], dtype=torch.int32, device=device)


# Tiles that a list of `with_room` has room for beyond its own.
SPARE_TILES = 5


def with_room(tiles):
    """A list with room for more tiles, which hold anything: a program's first is read before it is known how many there are."""
    spare = torch.randint(-(2**31), 2**31, (SPARE_TILES, tiles.shape[1]), device=tiles.device).to(tiles.dtype)
    return torch.cat([tiles, spare])


class Buckets:
    """What the routing kernels will leave in device memory, made with PyTorch: rows sorted by expert, tiles by class."""

    def __init__(self, ids, experts, class_of_count):
        """ids is int [tokens, k], on the device; class_of_count maps a count to the rows of a tile."""
        flat = ids.flatten().to(torch.int64)
        order = torch.sort(flat, stable=True).indices
        self.order = order.to(torch.int32)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(order.numel(), device=order.device)
        self.inverse = inverse.to(torch.int32)
        self.counts = torch.bincount(flat, minlength=experts).tolist()
        lists = {}
        first = 0
        for expert, count in enumerate(self.counts):
            if count:
                height = class_of_count(count)
                together = groups(-(-count // height))
                for i, start in enumerate(range(0, count, height)):
                    lists.setdefault(height, []).append([expert, first + start, min(height, count - start), together[i]])
            first += count
        self.tiles, self.tile_counts = {}, {}
        for height, listed in lists.items():
            placed, busy = busy_first(listed, height)
            self.tiles[height] = torch.tensor(placed, dtype=torch.int32, device=ids.device)
            self.tile_counts[height] = list_counts(len(placed), busy, ids.device)
