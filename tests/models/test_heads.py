"""The decode heads: layers that are computed another way equal torch's own, and maps come out on the pixels they belong to."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hls_foundry.models.heads import FcnHead, UnetHead, Upscale, drop_channels, levels_of, spread_subpixels


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_upscale_equals_torchs_transposed_convolution(levels: int) -> None:
    torch.manual_seed(0)
    layer = Upscale(6, 5, levels)
    x = torch.randn(2, 6, 3, 4)
    expected = F.conv_transpose2d(x, layer.weight, layer.bias, stride=2**levels)
    rows = layer(x.permute(0, 2, 3, 1).reshape(-1, 6))
    got = spread_subpixels(rows, (2, 3, 4), levels).permute(0, 3, 1, 2)
    torch.testing.assert_close(got, expected)


def test_two_doublings_spread_once_equal_two_transposed_convolutions() -> None:
    torch.manual_seed(0)
    first, second = Upscale(6, 5), Upscale(5, 3)
    x = torch.randn(2, 6, 3, 4)
    middle = F.gelu(F.conv_transpose2d(x, first.weight, first.bias, stride=2))
    expected = F.conv_transpose2d(middle, second.weight, second.bias, stride=2)
    rows = second(F.gelu(first(x.permute(0, 2, 3, 1).reshape(-1, 6))))
    torch.testing.assert_close(spread_subpixels(rows, (2, 3, 4), 2).permute(0, 3, 1, 2), expected)


@pytest.mark.parametrize(("patch", "levels"), [(16, 4), (14, 4), (8, 3), (4, 2), (2, 1), (32, 5), (10, 3)])
def test_levels_come_closest_to_the_patch(patch: int, levels: int) -> None:
    assert levels_of(patch) == levels


@pytest.mark.parametrize("patch", [16, 14, 8, 2])
@pytest.mark.parametrize("name", ["fcn", "unet"])
def test_heads_answer_on_the_images_own_size(name: str, patch: int) -> None:
    torch.manual_seed(0)
    levels = levels_of(patch)
    count = min(4, levels + 1)
    head = FcnHead(32, 16, 3, levels, 0.0) if name == "fcn" else UnetHead(32, count, 6, 16, 3, levels, 0.0)
    features = [torch.randn(2, 3, 4, 32) for _ in range(1 if name == "fcn" else count)]
    logits = head(features, torch.randn(2, 6, 3 * patch, 4 * patch))
    assert logits.shape == (2, 3, 3 * patch, 4 * patch)
    assert logits.dtype == torch.float32
    logits.sum().backward()
    assert all(p.grad is not None for p in head.parameters())


def test_fcn_head_answers_to_a_token_where_it_lies() -> None:
    torch.manual_seed(0)
    head = FcnHead(32, 16, 2, 4, 0.0).eval()
    features = torch.zeros(1, 4, 4, 32)
    changed = features.clone()
    changed[0, 1, 2] = torch.randn(32)
    image = torch.zeros(1, 6, 64, 64)
    difference = (head([changed], image) - head([features], image)).abs().sum(1)[0]
    assert difference[16:32, 32:48].min() > 0
    difference[15:33, 31:49] = 0  # the 3×3 convolution reaches one pixel further
    assert difference.max() == 0


def test_unet_head_sees_single_pixels_of_the_image() -> None:
    torch.manual_seed(0)
    head = UnetHead(32, 4, 6, 16, 2, 4, 0.0).eval()
    features = [torch.zeros(1, 4, 4, 32)] * 4
    image = torch.zeros(1, 6, 64, 64)
    spot = image.clone()
    spot[0, :, 20, 40] = 5.0
    difference = (head(features, spot) - head(features, image)).abs().sum(1)[0]
    assert difference.argmax().item() // 64 in range(18, 23)
    assert difference.argmax().item() % 64 in range(38, 43)


def test_dropout_drops_whole_channels_of_a_map() -> None:
    torch.manual_seed(0)
    dropout = torch.nn.Dropout1d(0.5)
    dropped = drop_channels(torch.ones(2, 3, 3, 64), dropout)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(dropped, dropped[:, :1, :1].expand_as(dropped))
    dropout.eval()
    assert torch.equal(drop_channels(dropped, dropout), dropped)
