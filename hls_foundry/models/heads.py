"""Decode heads: from the tokens of the encoder to logits of every pixel.

`FcnHead` is the tutorial's: a neck of transposed convolutions, then a fully convolutional head (arXiv:1411.4038).
`UnetHead` is a UNETR-style decoder over several blocks (arXiv:2103.10504) with a light convolutional stem on the image itself,
so that a small model learns crisp boundaries from random weights in minutes on a CPU.

Normalisation is over the channels of each pixel (LayerNorm), never over the batch: BatchNorm would make the result depend on how
a global batch is split over processes, and its running statistics are poor at the small batches of large scenes. It is also
what the tutorial's neck uses, and, unlike GroupNorm, it does not depend on what else the tile shows, so that overlapping tiles agree.

Feature maps are channels-last, (B, h, w, C), as tokens are: linear layers and LayerNorm need no shuffle, and oneDNN's
convolutions take them as they are. C is channels, K classes, h and w the grid of patches; S = 2^levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hls_foundry.models.prithvi import NORM_EPS


def levels_of(patch: int) -> int:
    """How many times a map of patches is doubled to come closest to pixels: 4 for patches of 16 and of 14, 3 for 8."""
    return max(1, round(math.log2(patch)))


def spread_subpixels(rows: Tensor, grid: tuple[int, int, int], levels: int) -> Tensor:
    """Rows (B·h·w·4^levels, C), ordered pixel in pixel in pixel, → a map (B, h·S, w·S, C)."""
    b, h, w = grid
    x = rows.reshape(b, h, w, *[2] * (2 * levels), -1)  # (B, h, w, row 1, column 1, row 2, column 2, …, C)
    rows_of_axes = [1, *range(3, 3 + 2 * levels, 2)]
    columns_of_axes = [2, *range(4, 4 + 2 * levels, 2)]
    x = x.permute(0, *rows_of_axes, *columns_of_axes, 3 + 2 * levels)
    return x.reshape(b, h << levels, w << levels, -1)


class Upscale(nn.ConvTranspose2d):
    """A transposed convolution with kernel = stride = 2^levels, on rows of pixels.

    Its patches do not overlap, so it is a matrix product, and pixels need not lie next to each other until all of a neck is done:
    half the time of oneDNN's transposed convolution here, with the same weights and the same result.
    """

    def __init__(self, channels: int, out_channels: int, levels: int = 1) -> None:
        super().__init__(channels, out_channels, kernel_size=2**levels, stride=2**levels)
        self.levels = levels

    def forward(self, rows: Tensor) -> Tensor:  # type: ignore[override]
        """(M, C) → (M·4^levels, C'), the new pixels of each old one ordered pixel in pixel (`spread_subpixels`)."""
        n = self.levels
        split = self.weight.reshape(self.in_channels, self.out_channels, *[2] * (2 * n))  # (C, C', row 1, row 2, …, column 1, …)
        axes = [axis for level in range(n) for axis in (2 + level, 2 + n + level)]
        weight = split.permute(*axes, 1, 0).reshape(-1, self.in_channels)  # (4^levels·C', C)
        bias = self.bias.repeat(4**n) if self.bias is not None else None
        return F.linear(rows, weight, bias).reshape(-1, self.out_channels)


class MapConv(nn.Conv2d):
    """A 3×3 convolution of a map (B, h, w, C) → (B, h / stride, w / stride, C')."""

    def __init__(self, channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(channels, out_channels, kernel_size=3, stride=stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) → (B, h / stride, w / stride, C')."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def to_logits(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """A map of scores (B, h, w, K) → float32 logits (B, K, H, W), resized bilinearly where the sizes differ."""
    logits = maps.permute(0, 3, 1, 2).float()
    if logits.shape[2:] != size:
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    return logits


class FcnHead(nn.Module):
    """The tutorial's decoder on the last block: ×2, norm, GELU, ×2, twice over; a 3×3 convolution; a classifier.

    The tutorial keeps all 768 channels up to full resolution, which costs seven times the encoder. Here they halve with every
    doubling, from `channels` at 1/8 to channels/4 at 1/2 and full resolution.
    """

    def __init__(self, embed_dim: int, channels: int, classes: int, levels: int, dropout: float) -> None:
        super().__init__()
        self.levels = levels
        widths = [max(8, channels >> min(level, 2)) for level in range(levels)]
        self.neck = nn.Sequential()
        for level, (before, after) in enumerate(zip([embed_dim, *widths[:-1]], widths, strict=True)):
            self.neck.append(Upscale(before, after))
            if level % 2 == 0:
                self.neck.extend([nn.LayerNorm(after, eps=NORM_EPS), nn.GELU()])
        self.conv = MapConv(widths[-1], widths[-1])
        self.norm = nn.LayerNorm(widths[-1], eps=NORM_EPS)
        self.dropout = nn.Dropout1d(dropout)
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, features: Sequence[Tensor], image: Tensor) -> Tensor:
        """features: one map (B, h, w, D); image (B, C, H, W) → logits (B, K, H, W)."""
        (x,) = features
        grid = x.shape[0], x.shape[1], x.shape[2]
        x = spread_subpixels(self.neck(x.reshape(-1, x.shape[-1])), grid, self.levels)  # (B, h·S, w·S, C)
        x = F.relu(self.norm(self.conv(x)))
        x = drop_channels(x, self.dropout)
        return to_logits(self.classifier(x), (image.shape[2], image.shape[3]))


class AuxiliaryHead(nn.Module):
    """The auxiliary FCN head, on the encoder's last map: it trains the encoder directly and is not part of a prediction."""

    def __init__(self, embed_dim: int, channels: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.conv = MapConv(embed_dim, channels)
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.dropout = nn.Dropout1d(dropout)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, h, w, D) → logits (B, K, H, W)."""
        x = drop_channels(F.relu(self.norm(self.conv(x))), self.dropout)
        scores: Tensor = self.classifier(x)
        return to_logits(scores, size)


def drop_channels(x: Tensor, dropout: nn.Dropout1d) -> Tensor:
    """Dropout of whole channels of a map (B, h, w, C): neighbouring pixels would give a dropped one away."""
    if not dropout.training or dropout.p == 0.0:
        return x
    keep: Tensor = dropout(torch.ones(x.shape[0], x.shape[-1], 1, dtype=x.dtype, device=x.device))  # (B, C, 1)
    return x * keep.reshape(x.shape[0], 1, 1, -1)


class UnetHead(nn.Module):
    """Blocks of the encoder from deep to shallow, each brought to a finer grid, and the image itself at the finest three.

    At each level the doubled map, the block's and the stem's are added and mixed by a 3×3 convolution. Widths for `channels` 64,
    patch 16: 64 at 1/16, 1/8 and 1/4, 32 at 1/2, 16 at full resolution, which is where the time goes.
    """

    def __init__(self, embed_dim: int, blocks: int, bands: int, channels: int, classes: int, levels: int, dropout: float) -> None:
        super().__init__()
        self.levels = levels
        widths = [max(8, channels >> max(0, level + 2 - levels)) for level in range(levels + 1)]  # from 1/S to 1/1
        self.entry = nn.Linear(embed_dim, widths[0])
        self.up = nn.ModuleList(Upscale(widths[level], widths[level + 1]) for level in range(levels))
        self.skip_norms = nn.ModuleList(nn.LayerNorm(embed_dim, eps=NORM_EPS) for _ in range(blocks - 1))
        self.skips = nn.ModuleList(Upscale(embed_dim, widths[level + 1], level + 1) for level in range(blocks - 1))
        self.convs = nn.ModuleList(MapConv(width, width) for width in widths[1:])
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=NORM_EPS) for width in widths[1:-1])
        finest = widths[1:][-3:][::-1]  # at 1, 1/2 and 1/4
        self.stem = nn.ModuleList(
            MapConv(before, after, stride=1 if i == 0 else 2)
            for i, (before, after) in enumerate(zip([bands, *finest[:-1]], finest, strict=True))
        )
        self.dropout = nn.Dropout1d(dropout)
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, features: Sequence[Tensor], image: Tensor) -> Tensor:
        """features: maps (B, h, w, D) of the blocks, shallow to deep; image (B, bands, H, W) → logits (B, K, H, W)."""
        deepest = features[-1]
        b, h, w, _ = deepest.shape
        stems = self._stems(image, (h << self.levels, w << self.levels))
        x = self.entry(deepest)  # (B, h, w, C)
        for level in range(self.levels):
            x = spread_subpixels(self.up[level](x.reshape(-1, x.shape[-1])), (x.shape[0], x.shape[1], x.shape[2]), 1)
            if level < len(self.skips):
                tokens = self.skip_norms[level](features[-2 - level]).reshape(b * h * w, -1)
                x = x + spread_subpixels(self.skips[level](tokens), (b, h, w), level + 1)
            finer = self.levels - 1 - level
            if finer < len(stems):
                x = x + stems[finer]
            x = self.convs[level](x)
            # At full resolution a LayerNorm would cost as much as all of the convolutions.
            x = F.gelu(self.norms[level](x)) if level < self.levels - 1 else F.relu(x)
        x = drop_channels(x, self.dropout)
        return to_logits(self.classifier(x), (image.shape[2], image.shape[3]))

    def _stems(self, image: Tensor, size: tuple[int, int]) -> list[Tensor]:
        """Maps of the image at full, 1/2 and 1/4 resolution of `size`."""
        if image.shape[2:] != size:
            image = F.interpolate(image, size=size, mode="bilinear", align_corners=False)
        x = image.permute(0, 2, 3, 1)
        maps = []
        for conv in self.stem:
            x = F.relu(conv(x))
            maps.append(x)
        return maps
