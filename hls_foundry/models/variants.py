"""The published Prithvi-EO encoders, one line each: a new one is a line here, and `model.variant` knows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Coordinate = Literal["time", "location"]


@dataclass(frozen=True)
class Variant:
    """One published encoder: its shape, its checkpoint, and the statistics it was pretrained with.

    `mean` and `std` are of reflectance × 10000 in the order blue, green, red, NIR, SWIR 1, SWIR 2.
    """

    embed_dim: int
    depth: int
    num_heads: int
    patch_size: int
    num_frames: int
    coords_encoding: tuple[Coordinate, ...]
    checkpoint: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


_V1 = {"mean": (775.0, 1081.0, 1229.0, 2497.0, 2204.0, 1611.0), "std": (1282.0, 1270.0, 1399.0, 1368.0, 1292.0, 1155.0)}
_V2 = {"mean": (1087.0, 1342.0, 1433.0, 2734.0, 1958.0, 1363.0), "std": (2248.0, 2179.0, 2178.0, 1850.0, 1242.0, 1049.0)}
_TL: tuple[Coordinate, ...] = ("time", "location")
_HUB = "hf://ibm-nasa-geospatial/Prithvi-EO"

VARIANTS: dict[str, Variant] = {
    "v1_100": Variant(768, 12, 12, 16, 3, (), f"{_HUB}-1.0-100M/Prithvi_EO_V1_100M.pt", **_V1),
    "v2_tiny_tl": Variant(192, 12, 3, 16, 1, _TL, f"{_HUB}-2.0-tiny-TL/Prithvi_EO_V2_tiny_TL.pt", **_V2),
    "v2_100_tl": Variant(768, 12, 12, 16, 4, _TL, f"{_HUB}-2.0-100M-TL/Prithvi_EO_V2_100M_TL.pt", **_V2),
    "v2_300": Variant(1024, 24, 16, 16, 4, (), f"{_HUB}-2.0-300M/Prithvi_EO_V2_300M.pt", **_V2),
    "v2_300_tl": Variant(1024, 24, 16, 16, 4, _TL, f"{_HUB}-2.0-300M-TL/Prithvi_EO_V2_300M_TL.pt", **_V2),
    "v2_600": Variant(1280, 32, 16, 14, 4, (), f"{_HUB}-2.0-600M/Prithvi_EO_V2_600M.pt", **_V2),
    "v2_600_tl": Variant(1280, 32, 16, 14, 4, _TL, f"{_HUB}-2.0-600M-TL/Prithvi_EO_V2_600M_TL.pt", **_V2),
}
