"""The model that is trained and served: a Prithvi encoder with a decode head, rebuilt in full from a JSON architecture."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hls_foundry.config import ModelConfig
from hls_foundry.errors import ConfigError
from hls_foundry.models.heads import AuxiliaryHead, FcnHead, UnetHead, levels_of
from hls_foundry.models.prithvi import PrithviEncoder
from hls_foundry.models.variants import VARIANTS


class _Described(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EncoderArchitecture(_Described):
    """What PrithviEncoder is built with."""

    embed_dim: Annotated[int, Field(ge=16, le=4096)]
    depth: Annotated[int, Field(ge=1, le=64)]
    num_heads: Annotated[int, Field(ge=1, le=64)]
    patch_size: Annotated[int, Field(ge=2, le=64)]
    image_size: Annotated[int, Field(ge=32, le=4096)]
    num_frames: Annotated[int, Field(ge=1, le=8)]
    coords_encoding: tuple[Literal["time", "location"], ...] = ()
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0


class HeadArchitecture(_Described):
    """What the decode head and the auxiliary head are built with. `blocks` count from 1 and end with the encoder's last."""

    name: Literal["fcn", "unet"]
    channels: Annotated[int, Field(ge=8, le=4096)]
    blocks: Annotated[tuple[int, ...], Field(min_length=1)]
    auxiliary: bool = False
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Architecture(_Described):
    """All that it takes to build a Segmenter without weights; JSON in a bundle's model.json."""

    variant: str = Field(description="what the encoder is called; the rest says what it is")
    coordinates: bool = Field(False, description="whether the model is fed acquisition time and location")
    classes: Annotated[int, Field(ge=2, le=256)] = 2
    encoder: EncoderArchitecture
    head: HeadArchitecture

    @model_validator(mode="after")
    def _blocks_exist(self) -> Architecture:
        blocks, depth = self.head.blocks, self.encoder.depth
        if self.head.name == "fcn" and len(blocks) != 1:
            raise ValueError(f"the fcn head takes the encoder's last block only, not {list(blocks)}")
        if list(blocks) != sorted(set(blocks)) or blocks[0] < 1 or blocks[-1] != depth:
            raise ValueError(f"head_blocks {list(blocks)} must ascend and end with the encoder's last block, {depth}")
        if len(blocks) > levels_of(self.encoder.patch_size) + 1:
            raise ValueError(
                f"head_blocks {list(blocks)}: at most {levels_of(self.encoder.patch_size) + 1} with patches of {self.encoder.patch_size}"
            )
        return self


class Segmenter(nn.Module):
    """Prithvi encoder and decode head.

    `forward` takes normalised reflectance; normalising is the caller's, with the statistics in the configuration or the bundle.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self._architecture = architecture
        e, head = architecture.encoder, architecture.head
        self.encoder = PrithviEncoder(
            e.embed_dim,
            e.depth,
            e.num_heads,
            (1, e.patch_size, e.patch_size),
            e.image_size,
            e.num_frames,
            coords_encoding=e.coords_encoding,
            drop_path=e.drop_path,
        )
        if not architecture.coordinates:
            for name, scale in self.encoder.named_parameters():
                if name.endswith("_embed_enc.scale"):
                    scale.requires_grad_(False)  # never used: DistributedDataParallel would wait for its gradient
        width = e.embed_dim * e.num_frames
        levels = levels_of(e.patch_size)
        self.head: FcnHead | UnetHead
        if head.name == "fcn":
            self.head = FcnHead(width, head.channels, architecture.classes, levels, head.dropout)
        else:
            self.head = UnetHead(width, len(head.blocks), 6 * e.num_frames, head.channels, architecture.classes, levels, head.dropout)
        self.auxiliary = AuxiliaryHead(width, head.channels, architecture.classes, head.dropout) if head.auxiliary else None

    @property
    def patch_size(self) -> int:
        """Pixels a side of a patch: H and W of an input are multiples of it."""
        return self._architecture.encoder.patch_size

    @property
    def classes(self) -> int:
        """K, the number of classes."""
        return self._architecture.classes

    @property
    def coordinates(self) -> bool:
        """Whether the model is to be fed acquisition time and location."""
        return self._architecture.coordinates

    def architecture(self) -> dict[str, Any]:
        """The JSON from which `segmenter_from_architecture` builds this model without its weights."""
        return self._architecture.model_dump(mode="json")

    def parameter_count(self, *, trainable: bool = False) -> int:
        """Number of parameters; with `trainable` only of those that take gradients."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not trainable)

    def forward(self, x: Tensor, temporal: Tensor | None = None, location: Tensor | None = None) -> Tensor:
        """Logits of every pixel, float32 (B, K, H, W).

        Args:
            x: normalised reflectance (B, 6, H, W) or (B, 6, T, H, W); H and W multiples of the patch, at least two of them.
            temporal: (B, T, 2) year and day of year. location: (B, 2) latitude and longitude. Used where `coordinates`.

        Raises ValueError for another shape.
        """
        maps, image = self._encode(x, temporal, location)
        logits: Tensor = self.head(maps, image)
        return logits

    def forward_training(self, x: Tensor, temporal: Tensor | None = None, location: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(logits, logits of the auxiliary head or None), each as `forward` returns them."""
        maps, image = self._encode(x, temporal, location)
        auxiliary = self.auxiliary(maps[-1], (image.shape[2], image.shape[3])) if self.auxiliary is not None else None
        return self.head(maps, image), auxiliary

    def _encode(self, x: Tensor, temporal: Tensor | None, location: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """The maps (B, h, w, T·D) that the head takes, shallow to deep, and the image as (B, 6·T, H, W)."""
        if x.ndim == 4:
            x = x.unsqueeze(2)
        e = self._architecture.encoder
        if x.ndim != 5 or x.shape[1] != 6 or x.shape[2] != e.num_frames:
            raise ValueError(f"expected (B, 6, {e.num_frames}, H, W) or, for one frame, (B, 6, H, W), got {tuple(x.shape)}")
        b, _, frames, height, width = x.shape
        t, h, w = self.encoder.tokens_grid(frames, height, width)
        if h < 2 or w < 2:
            raise ValueError(f"an image of {height} × {width} is smaller than two patches of {e.patch_size}")
        if not self.coordinates:
            temporal = location = None
        tokens = self.encoder.forward_features(x, temporal, location)
        # (B, 1 + t·h·w, D) → (B, h, w, t·D): the frames of one place side by side, as hls-foundation-os hands them to the neck
        maps = [
            tokens[block - 1][:, 1:].reshape(b, t, h, w, -1).permute(0, 2, 3, 1, 4).reshape(b, h, w, -1)
            for block in self._architecture.head.blocks
        ]
        return maps, x.flatten(1, 2)


def build_segmenter(config: ModelConfig, classes: int = 2) -> Segmenter:
    """A Segmenter with random weights, the same after the same torch.manual_seed.

    Raises ConfigError where the configuration names blocks that the encoder has not.
    """
    variant = VARIANTS[config.variant]
    patch_size = config.patch_size or variant.patch_size
    blocks: tuple[int, ...] = (variant.depth,)
    if config.head == "unet":
        count = min(4, levels_of(patch_size) + 1)
        blocks = config.head_blocks or tuple(variant.depth * i // count for i in range(1, count + 1))
    if config.image_size < 2 * patch_size:
        raise ConfigError(
            f"model.image_size {config.image_size} is smaller than two patches of {patch_size}: choose a larger image or a smaller patch"
        )
    description = {
        "variant": config.variant,
        "coordinates": config.coordinates,
        "classes": classes,
        "encoder": {
            "embed_dim": variant.embed_dim,
            "depth": variant.depth,
            "num_heads": variant.num_heads,
            "patch_size": patch_size,
            "image_size": config.image_size,
            "num_frames": config.frames,
            "coords_encoding": variant.coords_encoding,
            "drop_path": config.drop_path,
        },
        "head": {
            "name": config.head,
            "channels": config.head_channels,
            "blocks": blocks,
            "auxiliary": config.auxiliary_weight > 0,
            "dropout": config.dropout,
        },
    }
    model = segmenter_from_architecture(description)
    model.encoder.gradient_checkpointing = config.gradient_checkpointing
    return model


def segmenter_from_architecture(description: dict[str, Any]) -> Segmenter:
    """A Segmenter with random weights from `Segmenter.architecture()`.

    Raises ConfigError with one line naming the key that is wrong.
    """
    try:
        return Segmenter(Architecture.model_validate(description))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"model architecture{f', {key}' if key else ''}: {first['msg'].removeprefix('Value error, ')}") from None


class WithoutRandomWeights(TorchFunctionMode):
    """Builds modules without drawing weights that a file is about to replace.

    What building on the meta device would do as well, at the cost of importing sympy: a second of the endpoint's cold start.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        named = kwargs or {}
        if func in (torch.Tensor.uniform_, torch.Tensor.normal_) or getattr(func, "__module__", "") == "torch.nn.init":
            return named["tensor"] if "tensor" in named else args[0]
        return func(*args, **named)
