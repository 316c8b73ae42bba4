"""Masks that would be no use as polygons are refused before they cost a minute."""

from __future__ import annotations

import numpy as np
import pytest

from hls_foundry.errors import RequestError
from hls_foundry.serving import replies


def test_noise_is_refused_as_polygons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "MAX_REGIONS", 500)
    noise = np.random.default_rng(0).random((128, 128)) < 0.2
    with pytest.raises(RequestError, match="image/tiff") as refusal:
        replies._refuse_noise(noise)
    assert refusal.value.status == 422


def test_large_regions_with_holes_are_not_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "MAX_REGIONS", 3)
    mask = np.zeros((128, 128), bool)
    mask[10:50, 10:50] = mask[60:100, 60:100] = mask[0:5, 100:] = True
    mask[20:22, 20:40] = False
    replies._refuse_noise(mask)
    mask[120, ::20] = True
    with pytest.raises(RequestError):
        replies._refuse_noise(mask)
