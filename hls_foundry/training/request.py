"""What one training is asked for and what it answers: JSON files that a launcher, a Slurm job and a worker share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hls_foundry.config import DataConfig, InferenceConfig, ModelConfig, TaskConfig, TrainingConfig
from hls_foundry.errors import TrainingError
from hls_foundry.training.atomic import write_atomically

SCALARS = ("chip", "image", "mask", "split", "digest", "mask_digest")
"""Columns of the splits table that training reads; the digests may be missing."""


class TrainingRequest(BaseModel):
    """One training, complete: a worker on another machine needs this file, the chips under `root` and nothing else."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: TaskConfig
    data: DataConfig
    model: ModelConfig
    training: TrainingConfig
    inference: InferenceConfig = InferenceConfig()
    splits_table: Path = Field(description="table (.csv or .parquet) with columns chip, image, mask, split; paths relative to root")
    root: Path = Field(description="folder of the chips")
    folder: Path = Field(description="work folder of this training: metrics, checkpoints, best weights, result")
    weights_cache: Path | None = Field(None, description="where fetched checkpoints are kept")
    ram_budget: Annotated[int, Field(ge=0)] | None = Field(
        None, description="bytes of chips kept in memory; none: an eighth of the machine's; beyond it crops are read from disk"
    )

    def save(self, path: Path) -> None:
        """Write it to `path`, whole or not at all."""
        write_atomically(path, self.model_dump_json(indent=1).encode())

    @classmethod
    def load(cls, path: Path) -> TrainingRequest:
        """Raises TrainingError with one line where the file is missing or not a request."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise TrainingError(f"training request {path} cannot be read: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "the file"
            raise TrainingError(f"training request {path}: {key}: {first['msg']}") from None

    def table(self) -> pd.DataFrame:
        """The splits table, one row a chip, text columns `SCALARS`. Raises TrainingError."""
        path = self.splits_table
        try:
            table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype=str, keep_default_na=False)
        except (OSError, ValueError, ImportError) as error:
            raise TrainingError(f"splits table {path} cannot be read: {error}") from None
        if missing := [name for name in ("chip", "image", "mask", "split") if name not in table]:
            raise TrainingError(f"splits table {path} has no column {', '.join(missing)}")
        return table[[name for name in SCALARS if name in table]].astype(str).reset_index(drop=True)

    def digest(self, table: pd.DataFrame) -> str:
        """SHA-256 (hex) of all that decides the result: configuration and chips, but not how many processes share the work."""
        parts = self.model_dump(mode="json", include={"task", "data", "model", "training", "inference"})
        del parts["training"]["processes"]
        parts["chips"] = table.to_dict("list")
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class TrainingResult(BaseModel):
    """What a finished training leaves. `state` holds the best weights (LoRA merged) for `segmenter_from_architecture(architecture)`."""

    model_config = ConfigDict(extra="forbid")

    digest: str
    state: Path
    architecture: dict[str, Any]
    best: dict[str, Any] = Field(description="the validation record of the best step")
    history: list[dict[str, Any]] = Field(description="the lines of metrics.jsonl")
    steps: int
    epochs: float
    stopped: Literal["finished", "early"]
    resumed_from: int | None = Field(None, description="step of the checkpoint this run went on from")
    pretrained: bool
    weights: dict[str, Any] | None = Field(None, description="the report on the checkpoint the encoder started from")
    device: str
    precision: str
    processes: int
    threads: int = Field(description="CPU threads of each process")
    samples_per_s: float = Field(description="median over the steps of this run")
    seconds: float = Field(description="of this run, without those before an interruption")

    def save(self, folder: Path) -> None:
        """Write it to `folder`/result.json, whole or not at all."""
        write_atomically(folder / "result.json", self.model_dump_json(indent=1).encode())

    @classmethod
    def load(cls, folder: Path) -> TrainingResult:
        """Raises TrainingError where the folder has no whole result.json."""
        try:
            return cls.model_validate_json((folder / "result.json").read_bytes())
        except OSError:
            raise TrainingError(f"training in {folder} left no result.json: see the log above") from None
        except ValidationError as error:
            raise TrainingError(f"{folder / 'result.json'} is not a training result ({error.error_count()} problems): delete it") from None


def json_line(record: Mapping[str, Any]) -> str:
    """`record` as one line of JSON without spaces; numbers that are none become NaN and Infinity."""
    return json.dumps(record, separators=(",", ":"), allow_nan=True)
