"""Validation while training: the same numbers as the predictor alone, and left within a chip when a signal comes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from hls_foundry.inference.predictor import Predictor
from hls_foundry.models.segmenter import build_segmenter
from hls_foundry.training.losses import SegmentationLoss
from hls_foundry.training.processes import Processes
from hls_foundry.training.request import TrainingRequest
from hls_foundry.training.validation import Stopped, Validator, _probabilities

MakeRequest = Callable[..., TrainingRequest]


def test_a_signal_is_heeded_between_two_rows_of_tiles(make_request: MakeRequest) -> None:
    """One process hears it in the middle of its last chip: no score may come of what it left undone."""
    request = make_request()
    torch.manual_seed(0)
    model, loss = build_segmenter(request.model, 2).eval(), SegmentationLoss("dice", 2, None)
    validator = Validator(request, Processes(request.training), 10**9)
    predictor = Predictor(model, request.task.mean, request.task.std, 64, 0.25, 4, precision="fp32")
    scene, _ = validator._chip(0)
    whole = _probabilities(predictor, scene, lambda: 0)
    assert whole is not None
    np.testing.assert_array_equal(whole, predictor.probabilities(scene.pixels))
    assert _probabilities(predictor, scene, lambda: 10) is None

    asked = iter([0, 0, 10])
    with pytest.raises(Stopped) as stopped:
        validator(model, loss, lambda: next(asked), lambda: 10)
    assert stopped.value.signal == 10
