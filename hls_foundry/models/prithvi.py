"""The Prithvi-EO encoder: a vision transformer over tubelets of six-band HLS images, in plain torch.

Papers: Prithvi-EO-1.0, arXiv:2310.18660; Prithvi-EO-2.0, arXiv:2412.02732 (section 3 for the time and location encodings);
the masked autoencoder it was pretrained as, arXiv:2111.06377.
Checkpoints, all under ibm-nasa-geospatial on the Hugging Face hub: Prithvi-EO-1.0-100M, and Prithvi-EO-2.0-{tiny-TL, 100M-TL,
300M, 300M-TL, 600M, 600M-TL}. State-dict keys and arithmetic are theirs, so that a published file loads as it is.

Letters in shapes: B batch, C bands, T time steps, H and W pixels; t, h, w patches along time, height and width;
N = 1 + t·h·w tokens (class token first), D width of a token, A attention heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hls_foundry.models.variants import Coordinate

NORM_EPS = 1e-5
"""Of every LayerNorm: TerraTorch's, with which the published fine-tuned models were made (the pretraining code says 1e-6)."""

ATTENTION_BY_MATRICES_BELOW = 512
"""On a CPU in bf16, fewer tokens than this have their attention matrices multiplied out (see `Attention.forward`)."""


def sincos(positions: Tensor, dim: int) -> Tensor:
    """Sines, then cosines, of `positions` (M,) at dim/2 frequencies from 1 down to 1/10000: float32 (M, dim)."""
    frequencies = 10000.0 ** -(torch.arange(dim // 2, dtype=torch.float32, device=positions.device) / (dim / 2))
    angles = positions.to(torch.float32)[:, None] * frequencies[None, :]  # (M, dim/2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def position_embedding(dim: int, grid: tuple[int, int, int]) -> Tensor:
    """The fixed embedding of a (t, h, w) grid: float32 (1, 1 + t·h·w, dim), zeros for the class token.

    Of every 16 channels the first 6 encode the column, 6 the row and 4 the time step.
    """
    t, h, w = grid
    time = sincos(torch.arange(t), dim // 16 * 4)[:, None, None].expand(t, h, w, -1)
    row = sincos(torch.arange(h), dim // 16 * 6)[None, :, None].expand(t, h, w, -1)
    column = sincos(torch.arange(w), dim // 16 * 6)[None, None, :].expand(t, h, w, -1)
    patches = torch.cat([column, row, time], dim=-1).reshape(1, t * h * w, dim)
    return torch.cat([torch.zeros(1, 1, dim), patches], dim=1)


def resize_position_embedding(embedding: Tensor, old: tuple[int, int, int], new: tuple[int, int, int]) -> Tensor:
    """(1, 1 + t·h·w, D) of grid `old` → of grid `new`.

    As published: another number of time steps starts over from sines and cosines; rows and columns are resized bicubically
    with aligned corners, so that the same ground stays under the same embedding.
    """
    if old == new:
        return embedding
    dim = embedding.shape[-1]
    if old[0] != new[0]:
        embedding = position_embedding(dim, (new[0], *old[1:])).to(embedding)
    patches = embedding[:, 1:].reshape(new[0], old[1], old[2], dim).permute(0, 3, 1, 2)  # (t, D, h, w)
    if old[1:] != new[1:]:
        # Bicubic weights in bf16 are too coarse; this runs once for a grid that differs from the built one.
        patches = F.interpolate(patches.float(), size=new[1:], mode="bicubic", align_corners=True).to(embedding.dtype)
    return torch.cat([embedding[:, :1], patches.permute(0, 2, 3, 1).reshape(1, -1, dim)], dim=1)


class PatchEmbed(nn.Module):
    """Tubelets to tokens.

    Patches do not overlap, so the published Conv3d is one matrix product. In bf16 that is the quicker form; in float32 the
    convolution is, and it sums in the order of the reference implementation.
    """

    def __init__(self, patch_size: tuple[int, int, int], in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv3d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) → (B, t·h·w, D)."""
        b, c, frames, height, width = x.shape
        pt, ph, pw = self.patch_size
        t, h, w = frames // pt, height // ph, width // pw
        if x.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type):
            out: Tensor = self.proj(x)  # (B, D, t, h, w)
            return out.flatten(2).transpose(1, 2)  # (B, t·h·w, D)
        x = x.reshape(b, c, t, pt, h, ph, w, pw)
        x = x.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(b, t * h * w, c * pt * ph * pw)  # (B, t·h·w, C·pt·ph·pw)
        return F.linear(x, self.proj.weight.flatten(1), self.proj.bias)  # (B, t·h·w, D)


class TemporalEncoder(nn.Module):
    """Acquisition dates as tokens: half of the channels the year, half the day of the year, times one learned scale."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.scale = nn.Parameter(torch.full((1,), 0.1))

    def forward(self, coords: Tensor, tokens_per_step: int) -> Tensor:
        """coords (B, t, 2) = year, day of year from 1 → (B, t·tokens_per_step, D)."""
        b, t, _ = coords.shape
        half = self.embed_dim // 2
        year = sincos(coords[..., 0].reshape(-1), half)
        day = sincos(coords[..., 1].reshape(-1), self.embed_dim - half)
        dates = torch.cat([year, day], dim=1).reshape(b, t, self.embed_dim)
        return self.scale * dates.repeat_interleave(tokens_per_step, dim=1)


class LocationEncoder(nn.Module):
    """The scene's centre as one token: half of the channels latitude, half longitude, times one learned scale."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.scale = nn.Parameter(torch.full((1,), 0.1))

    def forward(self, coords: Tensor) -> Tensor:
        """coords (B, 2) = latitude, longitude in degrees → (B, 1, D)."""
        half = self.embed_dim // 2
        return self.scale * torch.cat([sincos(coords[:, 0], half), sincos(coords[:, 1], self.embed_dim - half)], dim=1)[:, None]


class Attention(nn.Module):
    """Multi-head self-attention without dropout."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) → (B, N, D)."""
        b, n, d = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, d // self.num_heads)  # (B, N, 3, A, D/A)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # three of (B, A, N, D/A)
        if q.device.type == "cpu" and q.dtype == torch.bfloat16 and n < ATTENTION_BY_MATRICES_BELOW:
            # At 197 tokens torch's fused CPU kernel takes twice as long forward and three times as long backward as these
            # products; they hold (B, A, N, N), so long sequences go the fused way.
            weights = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2), dim=-1, dtype=v.dtype)  # (B, A, N, N)
            x = weights @ v
        else:
            x = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(x.transpose(1, 2).reshape(b, n, d))  # (B, A, N, D/A) → (B, N, D)
        return out


class Mlp(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) → (B, N, D)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class DropPath(nn.Module):
    """Drops a residual branch for a share of the samples while training (stochastic depth, arXiv:1603.09382)."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, branch: Tensor) -> Tensor:
        """(B, N, D) → (B, N, D), kept samples scaled by 1 / (1 − share); unchanged outside of training."""
        if not self.training or self.share == 0.0:
            return branch
        keep = torch.rand(branch.shape[0], 1, 1, device=branch.device) >= self.share
        return branch * (keep.to(branch.dtype) / (1.0 - self.share))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) → (B, N, D)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out


class PrithviEncoder(nn.Module):
    """The encoder of Prithvi-EO.

    Args:
        patch_size: tubelet in time steps, rows, columns.
        image_size: pixels a side that `pos_embed` is built for; other sizes are resized to on the fly.
        num_frames: time steps that `pos_embed` is built for; other numbers start over from sines and cosines.
        coords_encoding: which of "time" and "location" it has a learned scale for (both in the _tl variants).
        drop_path: share of samples whose last block's branches are dropped; grows linearly from 0 at the first block.
    """

    pos_embed: Tensor

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        num_heads: int,
        patch_size: tuple[int, int, int] = (1, 16, 16),
        image_size: int = 224,
        num_frames: int = 1,
        in_chans: int = 6,
        mlp_ratio: float = 4.0,
        coords_encoding: tuple[Coordinate, ...] = (),
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.patch_size = patch_size
        self.grid = (num_frames // patch_size[0], image_size // patch_size[1], image_size // patch_size[2])
        self.gradient_checkpointing = False
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.register_buffer("pos_embed", position_embedding(embed_dim, self.grid))
        self.temporal_embed_enc = TemporalEncoder(embed_dim) if "time" in coords_encoding else None
        self.location_embed_enc = LocationEncoder(embed_dim) if "location" in coords_encoding else None
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio, drop_path * i / max(depth - 1, 1)) for i in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self._initialise()

    def _initialise(self) -> None:
        """As the masked autoencoder does: Xavier-uniform matrices, zero biases, a small class token."""
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.view(self.embed_dim, -1))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
            if isinstance(module, nn.Linear | nn.Conv3d) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def tokens_grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """How many patches (t, h, w) an image of (T, H, W) has. Raises ValueError unless H and W are multiples of the patch."""
        pt, ph, pw = self.patch_size
        if frames % pt or height % ph or width % pw:
            raise ValueError(f"an image of {frames} × {height} × {width} is not a multiple of the patch {pt} × {ph} × {pw}")
        return frames // pt, height // ph, width // pw

    def forward_features(self, x: Tensor, temporal_coords: Tensor | None = None, location_coords: Tensor | None = None) -> list[Tensor]:
        """Tokens after every block, the last normalised.

        Args:
            x: normalised reflectance (B, C, T, H, W); H and W multiples of the patch.
            temporal_coords: (B, T, 2) year and day of year; without, or without a temporal encoder, no date is added.
            location_coords: (B, 2) latitude and longitude; likewise.

        Returns:
            `depth` tensors (B, 1 + t·h·w, D).
        """
        grid = self.tokens_grid(*x.shape[2:])
        positions = resize_position_embedding(self.pos_embed, self.grid, grid)
        x = self.patch_embed(x)  # (B, t·h·w, D)
        x = x + positions[:, 1:]
        if self.temporal_embed_enc is not None and temporal_coords is not None:
            x = x + self.temporal_embed_enc(temporal_coords, grid[1] * grid[2])
        if self.location_embed_enc is not None and location_coords is not None:
            x = x + self.location_embed_enc(location_coords)
        first = self.cls_token + positions[:, :1]
        x = torch.cat([first.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)  # (B, N, D)
        features = []
        for block in self.blocks:
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
            features.append(x)
        features[-1] = self.norm(x)
        return features

    def forward(self, x: Tensor, temporal_coords: Tensor | None = None, location_coords: Tensor | None = None) -> Tensor:
        """The last of `forward_features`: (B, 1 + t·h·w, D)."""
        return self.forward_features(x, temporal_coords, location_coords)[-1]
