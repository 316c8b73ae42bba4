"""Every artifact draws itself: quickly, on a small page that loads nothing, the same after it was stored, and says what it shows."""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hls_foundry.chips.pictures import inventory_sections
from hls_foundry.config import FoundryConfig, load_config
from hls_foundry.endpoints.local import Endpoint
from hls_foundry.endpoints.polygon_maps import outlines
from hls_foundry.endpoints.process import ServerProcess
from hls_foundry.endpoints.publish import Published
from hls_foundry.endpoints.sagemaker.endpoint import SageMakerEndpoint
from hls_foundry.evaluation.metrics import Scores
from hls_foundry.evaluation.promotion_page import promotion_sections
from hls_foundry.report import page
from steps.artifacts import BundleFolder, PlacedModel, PlacedModels, PromotionRecord, PublishedModel, TrainingHistory
from steps.encoding import decode, encode
from steps.pictures import page_of, sections_of
from tests.steps import made_up

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CARD = "---\nlibrary_name: hls-foundry\n---\n\n# Burn scars\n\nMaps **burn scars**.\n\n| chips | IoU |\n|---|---|\n| test | 0.7 |\n"
LARGEST, SLOWEST_S = 2_000_000, 1.0


@pytest.fixture(scope="module")
def config() -> FoundryConfig:
    return load_config(CONFIGS, task="burn_scars")


def promotion(iou: float = 0.7, **others: float) -> PromotionRecord:
    def scores(hits: float) -> Scores:
        return Scores.from_confusion([[900, 50], [round(1000 * (1 - hits)), round(1000 * hits)]])

    compared = {"version 2": scores(iou), **{name: scores(value) for name, value in others.items()}}
    return PromotionRecord("burn_scars", "2", "production", True, "promoted: it is better", compared)


def endpoint() -> Endpoint:
    process = ServerProcess(pid=1, born="", control="")
    known = {"name": "burn_scars", "url": "http://127.0.0.1:8080", "model_version": "2", "sha256": "ab" * 32, "since": "2026-11-23"}
    return Endpoint(**known, port=8080, bundle="bundle", log="log", process=process)


@pytest.fixture(scope="module")
def artifacts(config: FoundryConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "README.md").write_text(CARD)
    published = PublishedModel("burn_scars", "2", "production", "s3://bucket/model.tar.gz", "ab" * 32, False, config.task, config.data)
    placed = PlacedModel(published, made_up.splits(config), Path("model.tar.gz"), published.uri, "cd" * 32)
    return {
        "inventory": made_up.inventory(config),
        "splits": made_up.splits(config),
        "history": TrainingHistory(made_up.history(), {"device": "cpu", "pretrained": False}),
        "bundle": BundleFolder(folder),
        "evaluation": made_up.evaluation(),
        "promotion": promotion(NBR=0.5, before=0.6),
        "published": Published("s3://bucket/model.tar.gz", "ab" * 32, CARD),
        "model": published,
        "placed": PlacedModels([placed]),
        "endpoint": endpoint(),
        "inference test": made_up.inference_test(),
    }


NAMES = (
    "inventory",
    "splits",
    "history",
    "bundle",
    "evaluation",
    "promotion",
    "published",
    "model",
    "placed",
    "endpoint",
    "inference test",
)


@pytest.fixture(scope="module")
def warm(artifacts: dict[str, Any]) -> None:
    """matplotlib is imported and its fonts are found, which happens once in a process."""
    page_of(artifacts["promotion"])


@pytest.mark.parametrize("name", NAMES)
def test_hundreds_of_chips_make_a_small_page_quickly(name: str, artifacts: dict[str, Any], warm: None) -> None:
    seconds = math.inf
    for _ in range(2):  # a busy machine slows one of them
        started = time.process_time()
        made = page_of(artifacts[name])
        seconds = min(seconds, time.process_time() - started)
    assert made
    print(f"{name}: {len(made) / 1e3:.0f} kB in {seconds:.2f} s")
    assert len(made.encode()) < LARGEST
    assert seconds < SLOWEST_S
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", made)
    assert "<script" not in made


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("placed", "inference test")])
def test_what_was_stored_draws_the_same(name: str, artifacts: dict[str, Any]) -> None:
    if name != "bundle":  # a folder, stored as it is
        assert page_of(decode(json.loads(json.dumps(encode(artifacts[name]))))) == page_of(artifacts[name])


def test_every_picture_says_what_it_shows(artifacts: dict[str, Any]) -> None:
    pictures = {picture.name: picture for name in NAMES for section in sections_of(artifacts[name]) for picture in section.pictures}
    assert set(pictures) == {
        "footprints", "band_histograms", "splits", "curves", "chips", "confusion", "comparison",
        "endpoint_polygons", "endpoint_places", "latencies",
    }  # fmt: skip
    assert all(len(picture.alternative) > 40 for picture in pictures.values())
    assert all(len(np.unique(picture.pixels.reshape(-1, 3), axis=0)) > 20 for picture in pictures.values()), "something was drawn"
    assert "480 train, 160 validation, 160 test" in pictures["splits"].alternative
    assert "blue mean 0.120, reference 0.033" in pictures["band_histograms"].alternative


def test_the_comparison_names_the_version_in_production(artifacts: dict[str, Any]) -> None:
    made = page_of(artifacts["promotion"])
    assert made
    for word in ("version 2", "NBR", "before", "Promoted: it is better.", "0.70"):
        assert word in made


def test_a_promotion_without_scores_is_told_without_bars() -> None:
    nothing = Scores.from_confusion([[0, 0], [0, 0]])
    assert "no score to compare" in page("", "", promotion_sections(version="1", stage="none", reason="no", compared={"1": nothing}))
    assert "why" in str(page_of(PromotionRecord("m", "1", "none", False, "why")))


def test_chips_without_a_place_are_told_rather_than_mapped(config: FoundryConfig) -> None:
    inventory = made_up.inventory(config, chips=4)
    inventory.table["crs"] = ["", "", "", "EPSG:32611"]
    assert "3 chips without georeferencing" in str(page_of(inventory))
    inventory.table["crs"] = ""
    assert "there is no map" in str(page_of(inventory))


def test_chips_with_an_error_are_listed_and_marked_on_the_map(config: FoundryConfig) -> None:
    inventory = made_up.inventory(config, chips=4)
    inventory.table.loc[1, "error"] = "it has no mask: add it"
    made = sections_of(inventory)
    assert "1 with an error" in made[0].pictures[0].alternative
    assert "it has no mask: add it" in made[1].body
    assert not inventory_sections(inventory, mapped=False)[0].pictures


def test_wrong_scale_is_said_below_the_histograms(config: FoundryConfig) -> None:
    inventory = made_up.inventory(config, chips=4)
    assert inventory.histograms
    inventory.histograms.counts[2, -1] = inventory.histograms.counts[2].sum()
    assert "% of the pixels (red) lie beyond the bins" in str(page_of(inventory))


@pytest.mark.parametrize("crs", ["EPSG:32611", "EPSG:4326", None])
def test_polygons_lie_on_the_pixels_that_they_came_from(crs: str | None) -> None:
    import rasterio.features

    prediction = made_up.prediction(5, 128, pictured=True, crs=crs)
    if crs == "EPSG:4326":
        from rasterio.crs import CRS
        from rasterio.transform import from_origin

        from hls_foundry.chips.scene import Grid
        from hls_foundry.endpoints.inference_test import ChipPrediction
        from hls_foundry.inference.polygons import feature_collection, polygons

        assert prediction.mask is not None
        grid = Grid(128, 128, from_origin(10, 50, 0.0003, 0.0003), CRS.from_epsg(4326))
        shares = np.stack([1.0 - prediction.mask, prediction.mask]).astype(np.float32)
        prediction = ChipPrediction("a", grid, prediction.mask, feature_collection(polygons(prediction.mask, shares, grid, ("no", "yes"))))
    shapes = [{"type": "Polygon", "coordinates": [ring.tolist()]} for ring in outlines(prediction)]
    assert shapes
    drawn = rasterio.features.rasterize(shapes, out_shape=(128, 128))
    np.testing.assert_array_equal(drawn, prediction.mask)


def test_an_inference_test_without_answers_or_imagery_still_draws() -> None:
    report = made_up.inference_test(chips=2, side=64)
    report.formats = []
    report.predictions = [made_up.prediction(0, 64, pictured=False, crs=None)]
    report.failures = ["chip a: refused"]
    made = page_of(report)
    assert made
    assert "chip a: refused" in made
    assert "<img" not in made


def test_how_to_call_a_rehearsed_endpoint_says_rehearse() -> None:
    known = {
        "name": "hls-flood",
        "model_version": "1",
        "sha256": "ab",
        "since": "",
        "kind": "realtime",
        "arn": "arn",
        "region": "eu-central-1",
    }
    there = {"status": "InService", "config": "c", "home": "s3://b/"}
    real = SageMakerEndpoint(**known, **there, url="https://runtime.sagemaker.eu-central-1.amazonaws.com/endpoints/hls-flood/invocations")
    rehearsed = SageMakerEndpoint(**known, **there, url="http://127.0.0.1:5000/endpoints/hls-flood/invocations")
    assert "--rehearse" not in str(page_of(real))
    assert "endpoints --stack aws --rehearse --delete hls-flood" in str(page_of(rehearsed))


def test_a_model_card_is_rendered_and_its_html_is_not() -> None:
    made = str(page_of(Published("u", "s", CARD + "\n<script>alert(1)</script>\n\n![map](http://x/y.png)\n")))
    assert "<strong>burn scars</strong>" in made
    assert "<td>0.7</td>" in made
    assert "<script>" not in made
    assert "<img" not in made


def test_what_is_not_drawn_has_no_page() -> None:
    assert page_of(3) is None
    assert sections_of(3) == []
