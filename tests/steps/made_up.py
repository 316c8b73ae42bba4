"""Artifacts of a large run, made up: hundreds of chips all over the world, and everything that is drawn of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rasterio.crs import CRS
from rasterio.transform import from_origin

from hls_foundry.chips.bands import BANDS
from hls_foundry.chips.histograms import BandHistograms, count_sorted
from hls_foundry.chips.inventory import EMPTY_ROW, Inventory
from hls_foundry.chips.scene import Grid
from hls_foundry.chips.splits import Splits
from hls_foundry.config import FoundryConfig
from hls_foundry.endpoints.bad_requests import Refusal
from hls_foundry.endpoints.inference_test import PICTURES, REPLIES, REQUESTS, ChipPrediction, FormatResult, InferenceTestReport
from hls_foundry.evaluation.evaluate import Baseline, EvaluationReport, Example
from hls_foundry.evaluation.metrics import Scores
from hls_foundry.inference.polygons import feature_collection, polygons

RANDOM = np.random.default_rng(1)
SIDE = 512
NAMES = [f"subsetted_512x512_HLS.S30.T{10 + number % 9}TGS.{2018000 + number}.v1.4" for number in range(800)]


def inventory(config: FoundryConfig, chips: int = 800) -> Inventory:
    rows = [_row(number) for number in range(chips)]
    spread = [np.clip(RANDOM.normal(mean, std, 200_000), 0, 1.2) for mean, std in zip(config.task.mean, config.task.std, strict=True)]
    counts = count_sorted(np.sort(np.stack(spread).astype(np.float32), axis=1))
    histograms = BandHistograms(counts, tuple(config.task.mean), tuple(config.task.std))
    return Inventory(pd.DataFrame(rows, columns=list(EMPTY_ROW)), Path("chips"), "burn_scars", histograms)


def splits(config: FoundryConfig) -> Splits:
    table = inventory(config).table
    return Splits(table.assign(split=["train", "train", "train", "validation", "test"] * (len(table) // 5)), Path("chips"))


def _row(number: int) -> dict[str, Any]:
    zone = 10 + number % 9
    transform = from_origin(300_000 + 15_360 * (number % 17), 4_000_000 + 15_360 * (number % 53), 30, 30)
    known = {
        "chip": NAMES[number], "image": f"{NAMES[number]}.tif", "mask": f"{NAMES[number]}.mask.tif", "tile": f"{zone}TGS",
        "date": f"{2016 + number % 8}-0{1 + number % 9}-11", "crs": f"EPSG:326{zone}", "epsg": 32600 + zone, "width": SIDE, "height": SIDE,
        "transform": tuple(transform)[:6], "resolution_m": 30.0, "positive_share": 0.01 * (number % 40), "nodata_share": 0.0,
        "cloud_share": 0.02, "digest": str(number), **{f"{band}_mean": 0.1 + 0.01 * (number % 5) for band in BANDS},
    }  # fmt: skip
    return {**EMPTY_ROW, **known}


def history(steps: int = 20_000) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        loss = 0.2 + math.exp(-step / 3000) + RANDOM.normal(0, 0.05)
        records.append({"kind": "train", "step": step, "loss": loss, "learning_rate": 6e-5 * (1 - step / steps)})
        if step % 200 == 0:
            score = 0.85 - 0.5 * math.exp(-step / 4000)
            records.append({"kind": "validation", "step": step, "miou": score, "iou": score - 0.1, "loss": loss})
    return records


def evaluation(chips: int = 800, side: int = SIDE) -> EvaluationReport:
    scores = Scores.from_confusion([[90_000, 2_000], [3_000, 12_000]])
    other = Scores.from_confusion([[85_000, 7_000], [5_000, 10_000]])
    rows = [_chip(number) for number in range(chips)]
    examples = tuple(_example(kind, side) for kind in ("best", "median", "worst"))
    baseline = Baseline("NBR", 0.05, other)
    return EvaluationReport("burn_scars", "Burn scars", ("background", "burn scar"), scores, baseline, pd.DataFrame(rows), examples, 12.0)


def _chip(number: int) -> dict[str, Any]:
    iou = math.nan if number % 10 == 0 else float(RANDOM.beta(5, 2))
    same = dict.fromkeys(("iou", "f1", "precision", "recall", "accuracy"), iou)
    pixels = {"tp": 900, "fp": 20, "fn": 30, "tn": 9000, "labelled_ha": 83.7, "predicted_ha": 82.8, "seconds": 0.2}
    return {"chip": NAMES[number], "baseline_iou": float(RANDOM.beta(4, 3)), **same, **pixels}


def noise(side: int) -> Any:
    """Pixels that compress as badly as real imagery."""
    return RANDOM.integers(0, 255, (side, side, 3), dtype=np.uint8)


def _example(kind: Any, side: int) -> Example:
    label = (RANDOM.random((side // 8, side // 8)) > 0.6).repeat(8, 0).repeat(8, 1).astype(np.int8)
    return Example(kind, NAMES[7], 0.5, noise(side), noise(side), label, np.roll(label, 5, axis=1))


def inference_test(chips: int = 300, side: int = 256) -> InferenceTestReport:
    formats = [
        FormatResult(request, reply, 100, 0, 0, 10_000, 10_000, list(RANDOM.gamma(3, 0.02, 100)))
        for request in REQUESTS
        for reply in REPLIES
    ]
    predictions = [prediction(number, side, pictured=number < PICTURES) for number in range(chips)]
    refusals = [Refusal(f"bad request {number}", (400,), 400, "bad request", "", "") for number in range(25)]
    return InferenceTestReport(formats, 0.7, bad_requests=refusals, predictions=predictions)


def prediction(number: int, side: int, *, pictured: bool, crs: str | None = "EPSG:32611") -> ChipPrediction:
    """A chip with a scatter of rectangles."""
    mask = np.zeros((side, side), np.int16)
    for row, column in RANDOM.integers(0, side - 30, (number % 12, 2)):
        mask[row : row + 25, column : column + 18] = 1
    transform = from_origin(300_000 + 50_000 * (number % 20), 4_000_000 + 30_000 * (number % 30), 30, 30)
    grid = Grid(side, side, transform, CRS.from_user_input(crs)) if crs else Grid(side, side)
    shares = np.stack([1.0 - mask, mask]).astype(np.float32)
    found = feature_collection(polygons(mask, shares, grid, ("background", "burn scar")))
    return ChipPrediction(NAMES[number], grid, mask, found, noise(side) if pictured else None)
