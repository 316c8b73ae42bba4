"""The learning rate of every step, and how long a training is: pure functions of the configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hls_foundry.config import TrainingConfig


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up from `warmup_start`, then polynomial decay to 0 at `total_steps`; steps count from 0."""

    total_steps: int
    steps_per_epoch: float
    validate_every: int
    checkpoint_every: int
    learning_rate: float
    warmup_steps: int
    warmup_start: float
    decay_power: float

    @classmethod
    def of(cls, config: TrainingConfig, chips: int) -> Schedule:
        """An epoch draws each of `chips` training chips once; batches are always full, so one may span two epochs."""
        total = math.ceil(config.epochs * chips / config.batch_size)
        total = min(total, config.max_steps) if config.max_steps else total
        validate_every = config.validate_every or math.ceil(chips / config.batch_size)
        return cls(
            total_steps=total,
            steps_per_epoch=chips / config.batch_size,
            validate_every=validate_every,
            checkpoint_every=config.checkpoint_every or validate_every,
            learning_rate=config.learning_rate,
            warmup_steps=config.warmup_steps,
            warmup_start=min(config.warmup_start, config.learning_rate),
            decay_power=config.decay_power,
        )

    def factor(self, step: int) -> float:
        """What a parameter group's own learning rate is multiplied by at `step` (1 at the peak)."""
        warmup = min(self.warmup_steps, self.total_steps)
        if step < warmup:
            start = self.warmup_start / self.learning_rate
            return start + (1 - start) * step / warmup
        left = (self.total_steps - step) / max(1, self.total_steps - warmup)
        return float(max(0.0, left) ** self.decay_power)

    def validates(self, done: int) -> bool:
        """Whether a validation follows when `done` steps are done."""
        return done % self.validate_every == 0 or done >= self.total_steps

    def saves(self, done: int) -> bool:
        """Whether a checkpoint follows when `done` steps are done."""
        return done % self.checkpoint_every == 0 or done >= self.total_steps
