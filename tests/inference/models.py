"""Models small enough for tests: a real Prithvi encoder with a convolutional head, and convolutions alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hls_foundry.models.prithvi import PrithviEncoder

MEAN = (0.05, 0.07, 0.08, 0.25, 0.2, 0.15)
STD = (0.03, 0.03, 0.04, 0.08, 0.08, 0.07)


class VitWithConvolutions(nn.Module):
    """(B, 6, H, W) → logits (B, 2, H, W)."""

    def __init__(self, seed: int = 0, image_size: int = 64) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = PrithviEncoder(48, 2, 3, (1, 16, 16), image_size)
        self.up = nn.ConvTranspose2d(48, 16, 16, stride=16)
        self.skip = nn.Conv2d(6, 16, 3, padding=1)
        self.head = nn.Sequential(nn.GELU(), nn.Conv2d(16, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, 2, 1))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        features = self.encoder.forward_features(x.unsqueeze(2))[-1][:, 1:]  # (B, h·w, D)
        h, w = x.shape[-2] // 16, x.shape[-1] // 16
        maps = features.transpose(1, 2).reshape(len(x), -1, h, w)
        logits: Tensor = self.head(self.up(maps) + self.skip(x)) * 4
        return logits


class Convolutions(nn.Module):
    """Sees six pixels far; what it says depends on nothing beyond, so tiling must not show at all."""

    patch_size = 16

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Conv2d(6, 8, 7, padding=3), nn.ReLU(), nn.Conv2d(8, 2, 7, padding=3))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits
