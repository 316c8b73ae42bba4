"""Artifact types that only pipelines need: a bundle folder on its way through the artifact store, and small records."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hls_foundry.chips.splits import Splits
from hls_foundry.config import DataConfig, TaskConfig
from hls_foundry.evaluation.metrics import Scores


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
    """What promotion decided about one model version, in words, and the scores that it compared, by what has them."""

    model: str
    version: str
    stage: str
    promoted: bool
    reason: str
    compared: dict[str, Scores] = field(default_factory=dict)


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


@dataclass(frozen=True)
class PlacedModel:
    """A production version, and where its archive lies: `archive` on this machine, `uri` where the endpoint reads it."""

    model: PublishedModel
    splits: Splits
    archive: Path
    uri: str
    bundle_sha256: str


@dataclass(frozen=True)
class PlacedModels:
    """The models behind one endpoint; the first is that of the task that the command is for."""

    models: list[PlacedModel]

    @property
    def first(self) -> PlacedModel:
        return self.models[0]

    def by_task(self) -> dict[str, PlacedModel]:
        return {placed.model.model: placed for placed in self.models}
