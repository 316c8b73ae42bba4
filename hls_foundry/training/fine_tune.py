"""Splits in, model bundle out: run a training and pack its best weights with everything that decided them."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from hls_foundry.config import DataConfig, InferenceConfig, ModelConfig, TaskConfig, TrainingConfig
from hls_foundry.errors import TrainingError
from hls_foundry.models.bundle import BundleManifest, save_bundle
from hls_foundry.revision import code_version, package_versions
from hls_foundry.training.request import SCALARS, TrainingRequest, TrainingResult
from hls_foundry.training.work_folder import claimed

IMAGE = "HLS_IMAGE"
"""Environment variable with what names the container that this runs in: runtime, image, digest."""


@dataclass(frozen=True)
class FineTuneConfig:
    """The parts of the configuration that fine-tuning takes."""

    task: TaskConfig
    data: DataConfig
    model: ModelConfig
    training: TrainingConfig
    inference: InferenceConfig


def fine_tune(
    table: pd.DataFrame, root: Path, config: FineTuneConfig, home: Path, *, lineage: Mapping[str, str | int | float] | None = None
) -> tuple[Path, TrainingResult]:
    """Fine-tune on the chips of `table` (columns chip, image, mask, split; paths relative to `root`).

    Works in `home`/training/DIGEST (see work_folder): an interrupted training started again goes on there. Returns the bundle's
    folder, which lies there as well, and what the training said. Raises what `launch` raises, and BundleError where the bundle
    cannot be written.
    """
    from safetensors.torch import load_file  # late, as below: torch takes two seconds to import, and FineTuneConfig does without

    from hls_foundry.models.segmenter import segmenter_from_architecture

    if config.model.frames != 1:
        raise TrainingError(f"model.frames={config.model.frames}: a chip holds one date, so there is nothing to stack; set model.frames=1")
    draft, scalars = _draft(table, root, config, home)
    with claimed(home / "training" / draft.digest(scalars.astype(str).reset_index(drop=True))[:16]) as work:
        request = _request(draft, scalars, work.path)
        result = _result(request, restarted=work.restarted)
        shutil.rmtree(request.folder / "checkpoints", ignore_errors=True)
        segmenter = segmenter_from_architecture(result.architecture)
        segmenter.load_state_dict(load_file(result.state))
        return save_bundle(request.folder / "bundle", segmenter, _manifest(config, result, table, lineage or {})), result


def _result(request: TrainingRequest, *, restarted: bool) -> TrainingResult:
    """Of the training, or of the one that this run had finished when its job was started again."""
    if (request.folder / "result.json").is_file():
        if restarted:
            return TrainingResult.load(request.folder)
        shutil.rmtree(request.folder / "checkpoints", ignore_errors=True)  # finished before: this is a new training, not a resumed one
        (request.folder / "result.json").unlink()
    from hls_foundry.training.launcher import launch

    return launch(request)


def _draft(table: pd.DataFrame, root: Path, config: FineTuneConfig, home: Path) -> tuple[TrainingRequest, pd.DataFrame]:
    """The request with places that are yet to be chosen, and the columns of the table that training reads."""
    draft = TrainingRequest(
        task=config.task,
        data=config.data,
        model=config.model,
        training=config.training,
        inference=config.inference,
        splits_table=home / "training" / "splits.csv",
        root=root,
        folder=home / "training",
        weights_cache=home / "weights",
    )
    return draft, table[[name for name in SCALARS if name in table]]


def _request(draft: TrainingRequest, scalars: pd.DataFrame, folder: Path) -> TrainingRequest:
    try:
        scalars.to_csv(folder / "splits.csv.partial", index=False)
        (folder / "splits.csv.partial").replace(folder / "splits.csv")
    except OSError as error:
        raise TrainingError(f"cannot write {folder}: {error.strerror or error}; free some space or set HLS_FOUNDRY_HOME") from None
    return draft.model_copy(update={"folder": folder, "splits_table": folder / "splits.csv"})


def _manifest(
    config: FineTuneConfig, result: TrainingResult, table: pd.DataFrame, lineage: Mapping[str, str | int | float]
) -> BundleManifest:
    import torch

    from hls_foundry.inference.predictor import resolve_precision

    counts = table["split"].value_counts()
    facts: dict[str, str | int | float] = {
        "training_digest": result.digest,
        "seed": config.training.seed,
        "steps": result.steps,
        "processes": result.processes,
        "precision": result.precision,
        "device": result.device,
        "chips_train": int(counts.get("train", 0)),
        "chips_validation": int(counts.get("validation", 0)),
        "chips_test": int(counts.get("test", 0)),
        "source": config.data.source,
        "code": code_version(),
        "python": platform.python_version(),
        **{f"package_{name.replace('-', '_')}": version for name, version in package_versions().items()},
        **({"image": image} if (image := os.environ.get(IMAGE)) else {}),
        **lineage,
    }
    weights = result.weights or {}
    return BundleManifest(
        task=config.task.name,
        title=config.task.title,
        classes=config.task.classes,
        mean=config.task.mean,
        std=config.task.std,
        architecture=result.architecture,
        tile=config.inference.tile,
        overlap=config.inference.overlap,
        batch_size=config.inference.batch_size,
        precision=resolve_precision("auto", torch.device(result.device)),
        metrics={"validation": {key: value for key, value in result.best.items() if isinstance(value, int | float)}},
        lineage=facts,
        pretrained=result.pretrained,
        weights=config.model.weights,
        weights_sha256=weights.get("sha256"),
    )
