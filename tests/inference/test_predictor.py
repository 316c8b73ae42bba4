"""Tiled prediction on real models: sizes, nodata, seams, precision, determinism."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from hls_foundry.config import ModelConfig
from hls_foundry.errors import BundleError, ChipError, ConfigError
from hls_foundry.inference.masks import mask_from_probabilities
from hls_foundry.inference.predictor import Predictor, RollingRows
from hls_foundry.models.bundle import BundleManifest, load_bundle, save_bundle
from hls_foundry.models.segmenter import build_segmenter

from .models import MEAN, STD, Convolutions, VitWithConvolutions

Pixels = npt.NDArray[np.float32]


def scene(height: int, width: int, seed: int = 0) -> Pixels:
    """Reflectance with structure at several scales."""
    generator = torch.Generator().manual_seed(seed)
    noise = [torch.randn(1, 6, height // step + 2, width // step + 2, generator=generator) for step in (1, 8, 48)]
    layers = [nn.functional.interpolate(layer, (height, width), mode="bilinear") for layer in noise]
    mixed = (0.3 * layers[0] + 0.7 * layers[1] + layers[2])[0].numpy()
    return (np.array(MEAN)[:, None, None] + np.array(STD)[:, None, None] * mixed).clip(0.001, 1).astype(np.float32)


def predictor(model: nn.Module | None = None, **settings: object) -> Predictor:
    return Predictor(model or VitWithConvolutions(), MEAN, STD, **{"tile": 224, "precision": "fp32", **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 65), (200, 200), (224, 224), (300, 777), (64, 500)])
def test_any_size_is_predicted_pixel_for_pixel(height: int, width: int) -> None:
    probabilities = predictor().probabilities(scene(height, width))
    assert probabilities.shape == (2, height, width)
    assert probabilities.dtype == np.float32
    assert np.isfinite(probabilities).all()
    np.testing.assert_allclose(probabilities.sum(axis=0), 1.0, atol=1e-5)


def test_one_whole_tile_equals_the_bare_model() -> None:
    pixels = scene(224, 224)
    model = VitWithConvolutions()
    normalised = (torch.from_numpy(pixels) - torch.tensor(MEAN).view(6, 1, 1)) / torch.tensor(STD).view(6, 1, 1)
    with torch.inference_mode():
        bare = model(normalised[None]).softmax(dim=1)[0].numpy()
    np.testing.assert_allclose(predictor(model).probabilities(pixels), bare, atol=1e-5)


def test_a_small_scene_runs_a_small_tile() -> None:
    seen: list[tuple[int, ...]] = []

    class Watching(Convolutions):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(tuple(x.shape))
            return super().forward(x)

    predictor(Watching()).probabilities(scene(70, 96))
    assert seen == [(1, 6, 80, 96)]


@pytest.mark.parametrize("shift", [37, 100])
@pytest.mark.parametrize("overlap", [0.25, 0.43])
def test_a_model_that_sees_six_pixels_far_is_predicted_without_any_trace_of_tiles(shift: int, overlap: float) -> None:
    pixels = scene(500, 640)
    one = predictor(Convolutions(), overlap=overlap).probabilities(pixels)
    other = predictor(Convolutions(), overlap=overlap).probabilities(pixels[:, shift:, shift:])
    np.testing.assert_allclose(one[:, shift + 8 :, shift + 8 :], other[:, 8:, 8:], atol=1e-5)


def test_a_transformer_agrees_with_itself_under_a_shifted_tiling() -> None:
    """The tolerance that predictor.py states: 0.02 in the mean, 0.1 anywhere, 0.98 of the mask."""
    pixels = scene(500, 640)
    one = predictor().probabilities(pixels)[1, 37 + 64 :, 37 + 64 :]
    other = predictor().probabilities(pixels[:, 37:, 37:])[1, 64:, 64:]
    assert np.abs(one - other).mean() <= 0.02
    assert np.abs(one - other).max() <= 0.1
    assert ((one > 0.5) == (other > 0.5)).mean() >= 0.98


def test_no_seam_where_tiles_meet() -> None:
    """Steps between neighbouring pixels are no larger where a tile starts than elsewhere."""
    flat = np.broadcast_to(np.array(MEAN, np.float32)[:, None, None], (6, 448, 448)).copy()
    step = np.abs(np.diff(predictor().probabilities(flat)[1], axis=1)).mean(axis=0)
    bare = np.abs(np.diff(predictor(tile=448).probabilities(flat)[1], axis=1)).mean(axis=0)
    inner = step[16:-16]
    assert inner.max() <= 1.5 * bare[16:-16].max() + 1e-3


def test_nodata_stays_nodata_and_does_not_spread() -> None:
    pixels = scene(300, 400)
    border = pixels.copy()
    border[:, :, :90] = np.nan
    border[3, 200, 300] = np.nan  # one band of one pixel
    border[1, 10, 350] = np.inf
    probabilities = predictor().probabilities(border)
    empty = np.zeros((300, 400), bool)
    empty[:, :90] = empty[200, 300] = empty[10, 350] = True
    np.testing.assert_array_equal(np.isnan(probabilities[0]), empty)
    np.testing.assert_array_equal(np.isnan(probabilities[1]), empty)
    mask = predictor().mask(border)
    np.testing.assert_array_equal(mask == -1, empty)
    assert set(np.unique(mask)) <= {-1, 0, 1}
    assert mask.dtype == np.int16


def test_all_nodata_is_answered_without_running_the_model() -> None:
    class Never(Convolutions):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("nothing to predict")

    mask = predictor(Never()).mask(np.full((6, 300, 100), np.nan, np.float32))
    assert (mask == -1).all()


def test_tiles_without_data_change_nothing_elsewhere() -> None:
    pixels = scene(224, 900)
    pixels[:, :, 500:] = np.nan
    alone = predictor(Convolutions()).probabilities(pixels[:, :, :724])
    np.testing.assert_allclose(predictor(Convolutions()).probabilities(pixels)[:, :, :490], alone[:, :, :490], atol=1e-5)


def test_the_same_pixels_give_the_same_bits() -> None:
    pixels = scene(300, 500)
    first = predictor().probabilities(pixels)
    busy = predictor()
    busy.probabilities(scene(100, 900, seed=1))
    np.testing.assert_array_equal(busy.probabilities(pixels), first)


def test_rows_read_once_give_the_same_bits_as_the_scene_in_memory() -> None:
    pixels = scene(500, 300)
    reads: list[tuple[int, int]] = []

    def read(start: int, stop: int) -> Pixels:
        reads.append((start, stop))
        return np.ascontiguousarray(pixels[:, start:stop])

    streamed = np.concatenate([rows.numpy() for _, rows in predictor().strips(RollingRows(read), 500, 300)], axis=1)
    np.testing.assert_array_equal(streamed, predictor().probabilities(pixels))
    assert reads[0][0] == 0
    assert [stop for _, stop in reads[:-1]] == [start for start, _ in reads[1:]]
    assert reads[-1][1] == 500


def test_progress_reaches_the_number_of_tiles() -> None:
    calls: list[tuple[int, int]] = []
    pixels = torch.from_numpy(scene(400, 400))
    for _ in predictor(Convolutions()).strips(lambda a, b: pixels[:, a:b], 400, 400, progress=lambda *c: calls.append(c)):
        pass
    assert calls[-1] == (9, 9)
    assert len(calls) == 3


def test_bf16_masks_agree_with_fp32() -> None:
    pixels = scene(300, 400)
    model = VitWithConvolutions()
    fp32, bf16 = (predictor(model, precision=p).mask(pixels) for p in ("fp32", "bf16"))
    assert (fp32 == bf16).mean() >= 0.995


def test_the_resolved_precision_is_recorded() -> None:
    assert predictor(precision="auto").precision in ("fp32", "bf16")
    assert predictor(precision="bf16").precision == "bf16"
    with pytest.raises(ConfigError, match="fp64"):
        predictor(precision="fp64")


def test_a_model_in_training_goes_back_to_training_with_its_frozen_parts_as_they_were() -> None:
    model = VitWithConvolutions().train()
    model.encoder.eval()
    predictor(model).probabilities(scene(64, 64))
    assert model.training
    assert model.head.training
    assert not model.encoder.training
    assert not model.encoder.blocks.training
    loss = model(torch.zeros(1, 6, 64, 64)).sum()
    loss.backward()  # nothing of inference mode clings to the weights
    assert model.skip.weight.grad is not None


def test_coordinates_reach_a_model_that_takes_them() -> None:
    seen: list[tuple[Tensor | None, Tensor | None]] = []

    class Placed(Convolutions):
        coordinates = True

        def forward(self, x: Tensor, temporal: Tensor | None = None, location: Tensor | None = None) -> Tensor:
            seen.append((temporal, location))
            return super().forward(x)

    predictor(Placed()).probabilities(scene(224, 300), date(2018, 10, 12), (43.5, -110.25))
    temporal, location = seen[0]
    assert temporal is not None
    assert location is not None
    assert temporal.tolist() == [[[2018, 285]]] * 2
    assert location.tolist() == [[43.5, -110.25]] * 2
    predictor(Placed()).probabilities(scene(64, 64))
    assert seen[-1] == (None, None)


def test_masks_follow_the_threshold() -> None:
    probabilities = np.array([[[0.9, 0.5, 0.3, np.nan]], [[0.1, 0.5, 0.7, np.nan]]], np.float32)
    assert mask_from_probabilities(probabilities).tolist() == [[0, 0, 1, -1]]
    assert mask_from_probabilities(probabilities, 0.05).tolist() == [[1, 1, 1, -1]]
    assert mask_from_probabilities(probabilities, 0.8).tolist() == [[0, 0, 0, -1]]
    with pytest.raises(ConfigError, match=r"1\.5"):
        mask_from_probabilities(probabilities, 1.5)


def test_what_cannot_be_predicted_is_refused_in_one_line() -> None:
    with pytest.raises(ChipError, match="32×80"):
        predictor().probabilities(scene(80, 32))
    with pytest.raises(ChipError, match="six bands"):
        predictor().probabilities(np.zeros((5, 80, 80), np.float32))
    with pytest.raises(ConfigError, match="multiple of 16"):
        predictor(tile=230)
    with pytest.raises(ConfigError, match="std"):
        Predictor(Convolutions(), MEAN, (0.0,) * 6)
    broken = Convolutions()
    with torch.no_grad():
        broken.layers[2].weight.fill_(torch.nan)
    with pytest.raises(BundleError, match="not a number"):
        predictor(broken).probabilities(scene(64, 64))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_bundle_predicts_with_its_own_settings_what_its_bare_model_predicts(tmp_path: Path, precision: str) -> None:
    torch.manual_seed(0)
    model = build_segmenter(ModelConfig(variant="v2_tiny_tl", head="unet", head_channels=8, coordinates=True, dropout=0.0)).eval()
    manifest = BundleManifest(
        task="burn_scars",
        title="Burn scars",
        classes=("background", "burn scar"),
        mean=MEAN,
        std=STD,
        architecture=model.architecture(),
        tile=96,
        overlap=0.0,
        batch_size=2,
    )
    bundle = load_bundle(save_bundle(tmp_path / "bundle", model, manifest))
    served = Predictor(bundle, precision=precision)
    assert (served.tile, served.overlap, served.batch_size, served.multiple, served.coordinates) == (96, 0.0, 2, 16, True)
    trained = Predictor(model, MEAN, STD, 96, 0.0, 2, precision=precision)
    pixels, where = scene(100, 160), (date(2020, 8, 1), (44.0, -121.0))
    np.testing.assert_array_equal(served.probabilities(pixels, *where), trained.probabilities(pixels, *where))
    assert all(weight.dtype == torch.float32 for weight in bundle.model.parameters())  # the bundle itself stays as it is
