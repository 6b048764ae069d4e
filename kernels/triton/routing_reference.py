"""What routing must give, with PyTorch: the rules in float64 over whole rows of experts, buckets by a stable sort, lists tile by tile.

For test_routing.py; runs anywhere.
"""

import math

import torch

from buckets import busy_first, groups

# Where float64 tells two scores apart by less than this, float32 may not.
MARGIN = 2e-6


def softmax(x):
    return torch.softmax(x, dim=-1)


def ranked(score, first):
    """The `first` best columns of each row, ties to the lower index."""
    return torch.sort(score, dim=1, descending=True, stable=True).indices[:, :first]


def clear(score, size, first, same=None):
    """Rows in which the first `first` ranks of `score`, and what ties with the last of them, are further apart than
    rounding, or exactly equal."""
    best, at = torch.sort(score, dim=1, descending=True, stable=True)
    sizes = size.gather(1, at)
    blur = MARGIN * torch.maximum(sizes[:, :-1], sizes[:, 1:])
    near = best[:, :-1] - best[:, 1:] < blur
    near &= best[:, first - 1 : first] - best[:, :-1] < blur
    if same is not None:
        equal = torch.stack([s.expand_as(score).gather(1, at) for s in same])
        near &= ~(equal[:, :, :-1] == equal[:, :, 1:]).all(dim=0)
    return ~near.any(dim=1)


def reference_route(logits, top_k, scoring, bias=None, renormalize=False, group_limit=None, scale=1.0, jitter=0.0):
    """(ids, weights, rows that rounding cannot decide otherwise), in float64 and over whole rows of experts."""
    x = logits.double()
    tokens, experts = x.shape
    score = {"softmax": softmax, "sigmoid": torch.sigmoid}.get(scoring, lambda v: v)(x)
    added = torch.zeros(experts, dtype=torch.float64, device=x.device) if bias is None else bias.double()
    selection = score + added
    # Without a bias the order is that of the logits, which no rounding touches.
    trusted = torch.ones(tokens, dtype=torch.bool, device=x.device)
    if group_limit:
        groups, keep, kind = group_limit
        members = selection.view(tokens, groups, -1)
        best = members.topk(2 if kind == "top2-sum" else 1, dim=2).values
        total = best.sum(2)
        sizes = (score.abs() + added.abs()).view(tokens, groups, -1).amax(2) * 2
        if bias is not None or kind == "top2-sum":
            trusted &= clear(total, sizes, keep, list(best.unbind(2)))
        kept = torch.zeros(tokens, groups, dtype=torch.bool, device=x.device).scatter_(1, ranked(total, keep), True)
        selection = selection.masked_fill(~kept.repeat_interleave(experts // groups, dim=1), -math.inf)
    if bias is not None or (group_limit and group_limit[2] == "top2-sum"):
        trusted &= clear(selection, score.abs() + added.abs() + (scoring not in ("softmax", "sigmoid")), top_k, [x, added])
    if scoring == "sparsemixer":
        ids, weights = [], []
        left = torch.ones_like(x, dtype=torch.bool)
        for _ in range(top_k):
            at = ranked(selection.masked_fill(~left, -math.inf), 1)
            most = x.gather(1, at)
            distance = (most - x) / torch.maximum(x.abs(), most)
            trusted &= ((distance - 2 * jitter).abs() > MARGIN).logical_or(distance == 0).all(dim=1)
            near = left & ~(distance > 2 * jitter)
            ids.append(at)
            weights.append(1 / torch.where(near, (x - most).exp(), 0.0).sum(1, keepdim=True))
            left = left.scatter(1, at, False)
        return torch.cat(ids, 1), torch.cat(weights, 1) * scale, trusted
    # By the logit where scores are not added to anything: a float64 softmax can underflow to ties.
    ids = ranked(selection, top_k)
    weights = score.gather(1, ids)
    if scoring == "topk-softmax":
        weights = softmax(weights)
    elif scoring == "topk-sigmoid":
        weights = weights.sigmoid()
    elif renormalize:
        weights = weights / (weights.sum(1, keepdim=True) + 1e-20)
    return ids, weights * scale, trusted


def reference_bucket(ids, experts, capacity_factor):
    """(counts, offsets, order, inverse) of int ids [tokens, k], -1 for none, by a stable sort on the host."""
    flat = ids.flatten().cpu()
    slots = flat.numel()
    counts = torch.bincount(flat[flat >= 0], minlength=experts)
    limit = slots if math.isinf(capacity_factor) else math.ceil(capacity_factor * ids.shape[0] * ids.shape[1] / experts)
    kept = counts.clamp(max=limit)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), kept.cumsum(0)])
    by_expert = torch.sort(torch.where(flat < 0, experts, flat), stable=True).indices[: int(counts.sum())]
    expert = flat[by_expert].long()
    rank = torch.arange(len(by_expert)) - (counts.cumsum(0) - counts)[expert]
    fits = rank < limit
    order = by_expert[fits]
    inverse = torch.full((slots,), -1)
    inverse[order] = torch.arange(len(order))
    return counts, offsets, order, inverse


def reference_tiles(kept, offsets, lane_of, lists):
    """For every list its tiles, in its order, and how many of them are of busy experts."""
    found = [[] for lane in lists for _ in lane]
    classes = len(lists[0])
    for expert, (rows, first, lane) in enumerate(zip(kept, offsets, lane_of)):
        mine = sum(rows > most for _, most, _ in lists[lane][:-1])
        height, _, together = lists[lane][mine]
        words = groups(-(-rows // height), together)
        for i, start in enumerate(range(0, rows, height)):
            found[lane * classes + mine].append([expert, first + start, min(height, rows - start), words[i]])
    heights = [height for lane in lists for height, *_ in lane]
    return [busy_first(tiles, height) for tiles, height in zip(found, heights)]
