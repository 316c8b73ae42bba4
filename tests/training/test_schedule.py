from __future__ import annotations

import pytest

from hls_foundry.config import TrainingConfig
from hls_foundry.training.schedule import Schedule


def schedule(chips: int = 16, **values: object) -> Schedule:
    return Schedule.of(TrainingConfig.model_validate({"batch_size": 8, "learning_rate": 1e-3, **values}), chips)


def test_warm_up_is_linear_from_its_start_and_decay_polynomial_to_zero() -> None:
    rates = schedule(epochs=50, warmup_steps=20, warmup_start=1e-5, decay_power=1.0)
    assert rates.total_steps == 100
    learning = [1e-3 * rates.factor(step) for step in range(101)]
    assert learning[0] == pytest.approx(1e-5)
    assert learning[10] == pytest.approx((1e-5 + 1e-3) / 2)
    assert learning[20] == pytest.approx(1e-3)
    assert learning[60] == pytest.approx(5e-4)
    assert learning[100] == 0
    squared = schedule(epochs=50, decay_power=2.0)
    assert squared.factor(50) == pytest.approx(0.25)
    assert schedule(epochs=50, decay_power=0.0).factor(99) == 1


def test_a_warm_up_longer_than_the_training_never_reaches_the_peak() -> None:
    rates = schedule(epochs=1, warmup_steps=1500, warmup_start=1e-6)
    assert rates.total_steps == 2
    assert [rates.factor(step) for step in (0, 1)] == pytest.approx([1e-3, (1 + 1e-3) / 2])


def test_epochs_max_steps_and_validations() -> None:
    assert schedule(chips=20, epochs=3).total_steps == 8  # 60 draws, batches of 8
    assert schedule(chips=20, epochs=3, max_steps=5).total_steps == 5
    once_an_epoch = schedule(chips=20, epochs=3)
    assert [step for step in range(1, 9) if once_an_epoch.validates(step)] == [3, 6, 8]
    assert [step for step in range(1, 9) if schedule(chips=20, epochs=3, validate_every=4, checkpoint_every=5).saves(step)] == [5, 8]
