"""The segmenter: shapes that it takes, its JSON architecture, and reproducible random weights."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from hls_foundry.config import ModelConfig
from hls_foundry.errors import ConfigError
from hls_foundry.models.segmenter import Segmenter, build_segmenter, segmenter_from_architecture
from hls_foundry.models.variants import VARIANTS


def small(**changes: Any) -> ModelConfig:
    return ModelConfig(**{"variant": "v2_tiny_tl", "head_channels": 32, "image_size": 64, "dropout": 0.0, **changes})


@pytest.mark.parametrize("head", ["fcn", "unet"])
@pytest.mark.parametrize(("patch", "height", "width"), [(None, 64, 64), (None, 32, 96), (14, 70, 56), (8, 40, 64)])
def test_logits_have_the_size_of_the_image(head: str, patch: int | None, height: int, width: int) -> None:
    model = build_segmenter(small(head=head, patch_size=patch), classes=3).eval()
    with torch.no_grad():
        logits = model(torch.randn(1, 6, height, width))
    assert logits.shape == (1, 3, height, width)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize("head", ["fcn", "unet"])
def test_several_time_steps_with_coordinates(head: str) -> None:
    model = build_segmenter(small(head=head, frames=3, coordinates=True)).eval()
    x = torch.randn(2, 6, 3, 64, 64)
    dates = torch.tensor([[[2020.0, 100.0], [2020.0, 130.0], [2020.0, 160.0]]] * 2)
    places = torch.tensor([[37.5, -121.9], [0.0, 10.0]])
    with torch.no_grad():
        with_coordinates = model(x, dates, places)
        without = model(x)
    assert with_coordinates.shape == (2, 2, 64, 64)
    assert not torch.equal(with_coordinates, without)


def test_coordinates_are_left_out_unless_configured() -> None:
    model = build_segmenter(small()).eval()
    x = torch.randn(1, 6, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x, torch.tensor([[[2020.0, 100.0]]]), torch.tensor([[37.5, -121.9]])), model(x))


@pytest.mark.parametrize("head", ["fcn", "unet"])
@pytest.mark.parametrize("coordinates", [False, True])
def test_every_trainable_parameter_takes_a_gradient(head: str, coordinates: bool) -> None:
    """DistributedDataParallel waits for each; one without a gradient stops a run."""
    model = build_segmenter(small(head=head, auxiliary_weight=0.4, coordinates=coordinates))
    logits, auxiliary = model.forward_training(torch.randn(2, 6, 64, 64), torch.full((2, 1, 2), 100.0), torch.full((2, 2), 10.0))
    assert auxiliary is not None
    assert auxiliary.shape == logits.shape == (2, 2, 64, 64)
    (logits.square().mean() + auxiliary.square().mean()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_auxiliary_head_exists_only_with_a_weight() -> None:
    logits, auxiliary = build_segmenter(small()).forward_training(torch.randn(1, 6, 64, 64))
    assert auxiliary is None
    assert logits.shape == (1, 2, 64, 64)


@pytest.mark.parametrize(
    "changes",
    [
        {"head": "fcn", "auxiliary_weight": 0.2, "dropout": 0.1},
        {"head": "unet", "head_blocks": (6, 12), "drop_path": 0.1},
        {"head": "unet", "frames": 2, "patch_size": 8, "coordinates": True},
    ],
)
def test_json_architecture_rebuilds_the_model(changes: dict[str, Any]) -> None:
    model = build_segmenter(small(**changes)).eval()
    rebuilt = segmenter_from_architecture(json.loads(json.dumps(model.architecture()))).eval()
    rebuilt.load_state_dict(model.state_dict(), strict=True)
    x = torch.randn(1, 6, changes.get("frames", 1), 64, 64)
    with torch.no_grad():
        assert torch.equal(rebuilt(x), model(x))
    assert rebuilt.architecture() == model.architecture()


def test_same_seed_gives_the_same_weights() -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return build_segmenter(small(head="unet")).state_dict()

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["encoder.blocks.0.attn.qkv.weight"], other["encoder.blocks.0.attn.qkv.weight"])


def test_parameter_count_is_that_of_the_parts() -> None:
    model = build_segmenter(small())
    assert model.parameter_count() == sum(p.numel() for p in model.parameters())
    assert model.parameter_count(trainable=True) == model.parameter_count() - 2  # the scales of time and location


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_builds_with_both_heads(variant: str) -> None:
    for head in ("fcn", "unet"):
        with torch.device("meta"):
            model = build_segmenter(ModelConfig(variant=variant, head=head))
        assert isinstance(model, Segmenter)
        assert model.parameter_count() > sum(p.numel() for p in model.encoder.parameters())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"head": "unet", "head_blocks": (3, 13)}, "end with the encoder's last block, 12"),
        ({"head": "unet", "head_blocks": (12, 6)}, "must ascend"),
        ({"head": "unet", "patch_size": 4, "head_blocks": (3, 6, 9, 12)}, "at most 3"),
        ({"patch_size": 64, "image_size": 64}, "smaller than two patches"),
    ],
)
def test_impossible_configurations_are_refused_in_one_line(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        build_segmenter(small(**changes))
    assert "\n" not in str(error.value)


def test_architecture_of_another_program_is_refused_in_one_line() -> None:
    description = build_segmenter(small()).architecture()
    with pytest.raises(ConfigError, match=r"encoder\.depth") as error:
        segmenter_from_architecture({**description, "encoder": {**description["encoder"], "depth": 10_000}})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(1, 5, 64, 64), (1, 6, 2, 64, 64), (1, 6, 60, 64), (1, 6, 16, 64), (6, 64, 64)])
def test_inputs_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected|multiple|smaller"):
        build_segmenter(small())(torch.zeros(shape))
