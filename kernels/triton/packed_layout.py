"""How weights of 12 bits lie (experts/packed_words.py), for what makes and reads them in Python: room for them, and plain weights back.

The way back is written for itself, from the format and not from the kernels, so that tests hold these against it.
"""

import torch

from layout import PANEL

GROUP_ROWS, PATCHES, FLAG_BITS = 16, 8, 32
PLANES = 3


class Packed:
    """Room for packed matrices [matrices, n, k], filled with what nobody must read."""

    def __init__(self, matrices, n, k, device):
        self.matrices, self.n, self.k = matrices, n, k
        self.panels, self.groups = k // PANEL, n // GROUP_ROWS

        def noise(*shape, dtype):
            return torch.randint(-(2**31), 2**31, shape, device=device).to(dtype)

        self.words = noise(matrices * self.panels * (n // PANEL), PLANES, 16, 32, dtype=torch.int32)
        self.scales = noise(matrices, n, dtype=torch.float32)
        self.flags = noise(matrices, self.groups, -(-self.panels // FLAG_BITS), dtype=torch.int32)
        self.patches = noise(matrices, self.panels, self.groups, 2, dtype=torch.int64)
        self.failures = torch.zeros(1, dtype=torch.int32, device=device)

    def parts(self):
        """As kernels name them."""
        return {"words": self.words, "scales": self.scales, "flags": self.flags, "patches": self.patches}

    def unpacked(self):
        """bfloat16 [matrices, n, k], rows of zeros with whatever sign."""
        weight = torch.arange(8)
        words = self.words.cpu().to(torch.int64).reshape(-1, PLANES, 4, 32, 4, 1) & 0xFFFFFFFF
        low = torch.where(weight < 4, words[:, 0], words[:, 1]) >> (weight % 4 * 8) & 0xFF
        sign = words[:, 2] >> torch.where(weight < 4, weight * 8 + 7, (weight % 4 * 8 + 11) % 32) & 1
        middle = words[:, 2] >> torch.where(weight < 4, weight * 8, weight % 4 * 8 + 4) & 7
        # [block, group, lane, 16 columns, weight]
        bits = sign << 15 | 7 << 11 | middle << 8 | low
        bits = self._flip(bits.reshape(self.matrices, self.panels, self.groups, 32, 32))
        # [matrix, panel, group, lane / 4, lane % 4, 16 columns, half of these, half of the rows, column]
        bits = bits.reshape(*bits.shape[:3], 8, 4, 4, 2, 2, 2).permute(0, 2, 3, 7, 1, 5, 6, 4, 8)
        bits = bits.reshape(self.matrices, self.n, self.k)
        value = (bits << 16 & 0xFFFFFFFF).to(torch.int64)
        value = torch.where(value >= 2**31, value - 2**32, value).to(torch.int32).view(torch.float32)
        return (value.double() * self.scales.cpu().double()[:, :, None]).to(torch.bfloat16)

    def _flip(self, bits):
        """With patches, [matrix, panel, group, lane, weight of the lane], where flags say that there are any."""
        records = self.patches.cpu()[..., None] >> torch.arange(4) * 16 & 0xFFFF
        records = records.reshape(self.matrices, self.panels, self.groups, PATCHES)
        panel = torch.arange(self.panels)
        flagged = self.flags.cpu()[:, :, panel // FLAG_BITS] >> (panel % FLAG_BITS) & 1
        flipped = torch.zeros_like(bits).reshape(*bits.shape[:3], 1024)
        for i in range(PATCHES):
            at = (records[..., i] >> 4)[..., None]
            flipped.scatter_add_(3, at, ((records[..., i] & 15) << 11)[..., None] * flagged.permute(0, 2, 1)[..., None])
        return bits ^ flipped.reshape(bits.shape)
