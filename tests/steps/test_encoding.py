"""Results survive the artifact store, and nothing else can be built from it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from affine import Affine
from rasterio.crs import CRS

from hls_foundry.chips.scene import Grid
from hls_foundry.config import DataConfig
from steps.artifacts import PromotionRecord, TrainingHistory
from steps.encoding import decode, encode


def round_trip(value: object) -> object:
    return decode(json.loads(json.dumps(encode(value))))


def test_tables_keep_tuples_and_missing_numbers() -> None:
    table = pd.DataFrame({"chip": ["a", "b"], "mask_values": [(0, 1), (-1,)], "mean": [0.25, math.nan], "valid": [True, False]})
    pd.testing.assert_frame_equal(round_trip(table), table)  # type: ignore[arg-type]


def test_arrays_keep_dtype_and_shape() -> None:
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    back = round_trip(array)
    assert isinstance(back, np.ndarray)
    assert back.dtype == np.int16
    np.testing.assert_array_equal(back, array)


def test_data_classes_models_paths_and_dates() -> None:
    history = TrainingHistory(records=[{"step": 1, "loss": 0.5}], facts={"device": "cpu"})
    assert round_trip(history) == history
    assert round_trip((Path("a/b"), date(2024, 8, 1), None)) == (Path("a/b"), date(2024, 8, 1), None)
    assert round_trip(DataConfig(source="x", bands=(1, 2, 3, 4, 5, 6))) == DataConfig(source="x", bands=(1, 2, 3, 4, 5, 6))
    assert round_trip(PromotionRecord("m", "1", "production", True, "why")) == PromotionRecord("m", "1", "production", True, "why")


def test_only_classes_of_this_project_are_built() -> None:
    with pytest.raises(TypeError, match="unknown kind 'subprocess:Popen'"):
        decode({"__kind__": "subprocess:Popen", "fields": {"args": ["true"]}})


def test_unknown_kinds_are_refused_when_storing() -> None:
    @dataclass
    class Odd:
        handle: object

    with pytest.raises(TypeError, match="object is not a kind"):
        encode(Odd(object()))


def test_grids_keep_their_transform_and_any_crs() -> None:
    grid = Grid(64, 65, Affine(30, 0, 699960, 0, -30, 5200020), CRS.from_proj4("+proj=utm +zone=10 +ellps=WGS84 +units=m"))
    assert round_trip(grid) == grid
    assert round_trip(Grid(1, 2)) == Grid(1, 2)
