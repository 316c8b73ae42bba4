"""Where tiles lie on a scene, and the weights that blend them without seams. Depends on sizes only, never on pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Axis:
    """The tiles along one side of a scene.

    `tile`: pixels of one tile along this side. `extent`: the side's pixels after padding, max(length, tile).
    `starts`: first pixel of each tile, ascending. `weights`: float32 (len(starts), tile); over all tiles that cover a pixel they sum to 1.
    """

    length: int
    tile: int
    starts: tuple[int, ...]
    weights: npt.NDArray[np.float32]

    @property
    def extent(self) -> int:
        """Pixels after padding: at least one tile."""
        return max(self.length, self.tile)

    @property
    def reflection(self) -> npt.NDArray[np.intp]:
        """(extent,) for each padded position the pixel that it repeats: mirrored at the far edge, as often as it takes."""
        return np.pad(np.arange(self.length), (0, self.extent - self.length), mode="reflect" if self.length > 1 else "edge")


def place(length: int, tile: int, overlap: float, multiple: int = 16) -> Axis:
    """Place tiles of `tile` pixels over `length` pixels; neighbours share at least `overlap` (0–0.75) of a tile.

    A side shorter than a tile gets one tile, rounded up to `multiple` (the model's patch) and at least two patches long. Longer sides
    get the fewest tiles that suffice, evenly spread, so that the surplus becomes overlap everywhere instead of a sliver at the end.
    """
    if length < tile:
        single = min(tile, max(2 * multiple, ceil(length / multiple) * multiple))
        return Axis(length, single, (0,), np.ones((1, single), dtype=np.float32))
    shared = min(round(tile * overlap), tile - 1)
    count = ceil((length - shared) / (tile - shared))
    last = length - tile
    starts = tuple(round(i * last / (count - 1)) for i in range(count)) if count > 1 else (0,)
    return Axis(length, tile, starts, _weights(starts, tile))


def _weights(starts: Sequence[int], tile: int) -> npt.NDArray[np.float32]:
    """Raised-cosine ramps over the middle half of each overlap, normalised to sum to 1 at every pixel.

    The outer quarter of an overlap weighs nothing: there a tile has too little context (a convolution sees padding, a patch lacks
    neighbours), and the neighbour that covers the same pixels has more. Edges of the scene have no neighbour and no ramp.
    """
    position = np.arange(tile) + 0.5
    weights = np.ones((len(starts), tile))
    for i, (left, right) in enumerate(pairwise(starts)):
        shared = left + tile - right
        if shared <= 0:
            continue
        along = np.clip((position[:shared] - shared / 4) / (shared / 2), 0.0, 1.0)
        ramp = 0.5 - 0.5 * np.cos(np.pi * along)
        weights[i, tile - shared :] *= ramp[::-1]
        weights[i + 1, :shared] *= ramp
    total = np.zeros(starts[-1] + tile)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + tile] += weight
    for start, weight in zip(starts, weights, strict=True):
        weight /= total[start : start + tile]
    return weights.astype(np.float32)


def even_groups(items: Sequence[int], most: int) -> list[Sequence[int]]:
    """Cut `items` into the fewest groups of at most `most`, as equal as can be: 21 by 4 is not five fours and a one."""
    count = ceil(len(items) / most)
    cuts = [round(i * len(items) / count) for i in range(count + 1)] if count else [0]
    return [items[a:b] for a, b in pairwise(cuts)]
