"""Tile placement and blending weights."""

from __future__ import annotations

import numpy as np
import pytest

from hls_foundry.inference.tiling import even_groups, place

LENGTHS = (64, 65, 200, 224, 225, 230, 300, 392, 393, 512, 777, 3660)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.43, 0.75])
@pytest.mark.parametrize("length", LENGTHS)
def test_tiles_cover_the_side_and_their_weights_sum_to_one(length: int, overlap: float) -> None:
    axis = place(length, 224, overlap, 16)
    total = np.zeros(axis.extent)
    for start, weight in zip(axis.starts, axis.weights, strict=True):
        assert 0 <= start <= axis.extent - axis.tile
        total[start : start + axis.tile] += weight
    np.testing.assert_allclose(total, 1.0, atol=1e-6)
    assert (axis.weights >= 0).all()
    assert axis.tile % 16 == 0


@pytest.mark.parametrize("length", [393, 512, 777, 3660])
def test_neighbours_share_at_least_the_overlap_and_no_tile_is_superfluous(length: int) -> None:
    axis = place(length, 224, 0.25, 16)
    strides = np.diff(axis.starts)
    assert (strides <= 168).all()
    assert (len(axis.starts) - 2) * 168 + 224 < length


@pytest.mark.parametrize(("length", "tile"), [(64, 64), (65, 80), (200, 208), (223, 224), (224, 224)])
def test_a_short_side_gets_one_tile_rounded_up_to_the_patch(length: int, tile: int) -> None:
    axis = place(length, 224, 0.25, 16)
    assert (axis.tile, axis.starts) == (tile, (0,))


def test_a_side_shorter_than_half_a_tile_is_reflected_as_often_as_it_takes() -> None:
    axis = place(70, 512, 0.25, 160)  # a model with a coarse grid: at least two of its patches
    assert axis.extent == 320
    assert axis.reflection[:4].tolist() == [0, 1, 2, 3]
    assert axis.reflection[69:72].tolist() == [69, 68, 67]
    assert axis.reflection.max() == 69
    assert np.abs(np.diff(axis.reflection)).max() == 1


def test_the_rim_of_a_tile_weighs_nothing_where_a_neighbour_covers_it() -> None:
    axis = place(560, 224, 0.25, 16)
    assert axis.starts == (0, 168, 336)
    assert (axis.weights[1, :14] == 0).all()
    assert (axis.weights[1, -14:] == 0).all()
    assert (axis.weights[0, :168] == 1).all()


def test_groups_are_even() -> None:
    assert sorted(len(g) for g in even_groups(range(21), 4)) == [3, 3, 3, 4, 4, 4]
    assert [i for g in even_groups(range(21), 4) for i in g] == list(range(21))
    assert [len(g) for g in even_groups(range(3), 4)] == [3]
    assert even_groups([], 4) == []
