"""Artifact types that only pipelines need: a bundle folder on its way through the artifact store, and small records."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hls_foundry.config import DataConfig, TaskConfig


@dataclass(frozen=True)
class BundleFolder:
    """A model bundle on disk (see hls_foundry.models.bundle)."""

    path: Path


@dataclass(frozen=True)
class TrainingHistory:
    """What fine-tuning logged: one dict a record, and facts about the run."""

    records: list[dict[str, float | int | str]]
    facts: dict[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class PromotionRecord:
    """What promotion decided about one model version, in words."""

    model: str
    version: str
    stage: str
    promoted: bool
    reason: str


@dataclass(frozen=True)
class PublishedModel:
    """The production version of a task's model, as deployment needs it."""

    model: str
    version: str
    stage: str
    uri: str
    sha256: str
    pretrained: bool
    task: TaskConfig
    data: DataConfig
