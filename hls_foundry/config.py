"""Typed configuration: what configs/*.yaml may say. Unknown keys and values out of range are refused with the key's name."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator

from hls_foundry.errors import ConfigError
from hls_foundry.models.variants import VARIANTS

BandName = Literal["blue", "green", "red", "nir", "swir1", "swir2"]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
SixNumbers = Annotated[tuple[float, ...], Field(min_length=6, max_length=6)]


def _known_variant(name: str) -> str:
    if name not in VARIANTS:
        raise ValueError(f"no such encoder: it is one of {', '.join(VARIANTS)}")
    return name


VariantName = Annotated[str, AfterValidator(_known_variant), WithJsonSchema({"enum": list(VARIANTS)})]


class Part(BaseModel):
    """One part of the configuration; rejects keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class IndexConfig(Part):
    """The spectral index a scientist tries first: (a − b) / (a + b), thresholded on the training chips."""

    name: str = Field(description="NBR, MNDWI, …")
    bands: tuple[BandName, BandName] = Field(description="a and b of (a − b) / (a + b)")
    positive: Literal["below", "above"] = Field(description="on which side of the threshold class 1 lies")


class TaskConfig(Part):
    """What is mapped: the classes, their layout on disk, the index baseline and the reference statistics."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{1,40}$")]
    title: str
    classes: tuple[str, str] = Field(description="names of class 0 and class 1")
    layout: Literal["hls_burn_scars", "sen1floods11"]
    index: IndexConfig
    mean: SixNumbers = Field(description="normalisation: mean reflectance (0–1) of blue, green, red, nir, swir1, swir2")
    std: SixNumbers = Field(description="normalisation: standard deviation of reflectance, same order")


class DataConfig(Part):
    """Where the chips come from and how their files are read."""

    source: str = Field(
        description="PATH, s3://BUCKET/PREFIX, hf://OWNER/NAME or synthetic://[LABELS]?chips=…&size=…&seed=… "
        "(LABELS: burn_scars, flood or forest, the task's own where none are named)"
    )
    bands: Literal["auto"] | tuple[int | str, ...] = Field(
        "auto", description="six band numbers (from 1) or names; auto: by the file's descriptions, 6 bands as they are, 13 as Sentinel-2"
    )
    scale: Literal["auto"] | Annotated[float, Field(gt=0)] = Field(
        "auto", description="file value × scale = reflectance; auto: 0.0001 for integers, 1 for floats"
    )
    nodata: float | None = Field(None, description="overrides the file's own nodata; without either −9999 counts as nodata")
    validation_share: Share = Field(0.2, description="of the training pool, where the data set brings no validation list")
    test_share: Share = Field(0.2, description="of all chips, where the data set brings no test list")
    split_seed: Annotated[int, Field(ge=0)] = 0
    neighbouring_days: Annotated[int, Field(ge=0)] = Field(16, description="dates this close on one tile stay in one split")


class ValidationConfig(Part):
    """Thresholds of the validation suite. Shares are 0–1 of a chip's pixels, reflectance is 0–1."""

    on_failure: Literal["fail", "quarantine"] = "quarantine"
    max_bad_share: Share = Field(0.1, description="with quarantine: stop when more than this share of chips is bad")
    min_size: Annotated[int, Field(ge=64)] = 64
    max_size: Annotated[int, Field(ge=64)] = 4096
    dtypes: tuple[str, ...] = ("int16", "uint16", "float32", "float64")
    resolution_m: tuple[float, float] = Field((5.0, 61.0), description="lowest and highest pixel size")
    reflectance: tuple[float, float] = Field((-0.2, 1.6), description="range in which the 2 % and 98 % quantiles of every band lie")
    max_nodata_share: Share = 0.9
    max_cloud_share: Share = 0.9
    max_ignored_share: Share = 0.95
    positive_share: tuple[Share, Share] = Field((0.0, 0.98), description="range of the share of class 1 in one chip")
    min_positive_chips: Share = Field(0.1, description="at least this share of chips has a pixel of class 1")
    max_drift: Annotated[float, Field(gt=0)] = Field(
        3.0,
        description="largest distance of a band's mean (the median over the chips) from the task's reference, in its standard deviations",
    )
    check_band_order: bool = Field(True, description="compare the bands with the task's reference, to find bands in a wrong order")
    min_separability: Share = Field(
        0.6,
        description="median over chips of the chance that the index ranks a pixel of class 1 before one of class 0; "
        "0.5: masks of other places; 0: do not check",
    )


class ModelConfig(Part):
    """The encoder, where its weights come from, the head, and which of it is trained."""

    variant: VariantName = "v2_tiny_tl"
    weights: str = Field("none", description="none, PATH or hf://OWNER/NAME/FILE of a published checkpoint")
    weights_sha256: str | None = None
    patch_size: Annotated[int, Field(ge=2)] | None = Field(None, description="other than the variant's: the patch embedding starts fresh")
    image_size: Annotated[int, Field(ge=32)] = Field(224, description="pixels a side the position embedding is built for")
    frames: Annotated[int, Field(ge=1, le=8)] = 1
    coordinates: bool = Field(False, description="feed acquisition time and location to a _tl variant")
    head: Literal["fcn", "unet"] = "fcn"
    head_channels: Annotated[int, Field(ge=8)] = 256
    head_blocks: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="encoder blocks (from 1) for the unet head; empty: four, evenly spaced"
    )
    auxiliary_weight: Annotated[float, Field(ge=0)] = Field(0.0, description="weight of the auxiliary head's loss; 0: no auxiliary head")
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    gradient_checkpointing: bool = False
    tune: Literal["full", "frozen", "last_blocks", "lora"] = "full"
    last_blocks: Annotated[int, Field(ge=1)] = 4
    lora_rank: Annotated[int, Field(ge=1)] = 16
    lora_alpha: Annotated[float, Field(gt=0)] = 32.0

    @model_validator(mode="after")
    def _coordinates_need_tl(self) -> ModelConfig:
        if self.coordinates and not VARIANTS[self.variant].coords_encoding:
            raise ValueError(f"coordinates: true needs a _tl variant, not {self.variant}")
        return self


class TrainingConfig(Part):
    """The optimisation. batch_size is global: over all processes and accumulation steps."""

    epochs: Annotated[int, Field(ge=1)] = 50
    max_steps: Annotated[int, Field(ge=1)] | None = Field(None, description="stop after this many optimiser steps, whatever epochs says")
    batch_size: Annotated[int, Field(ge=1)] = 8
    accumulation: Annotated[int, Field(ge=1)] = 1
    crop_size: Annotated[int, Field(ge=32)] = 224
    learning_rate: Annotated[float, Field(gt=0)] = 6e-5
    betas: tuple[Share, Share] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    warmup_start: Annotated[float, Field(ge=0)] = Field(1e-6, description="learning rate at step 0 of the linear warm-up")
    decay_power: Annotated[float, Field(ge=0)] = Field(1.0, description="power of the polynomial decay to 0")
    loss: Literal["dice", "cross_entropy", "dice_cross_entropy"] = "dice"
    class_weights: tuple[float, float] | None = None
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    flips: bool = True
    rotations: bool = True
    validate_every: Annotated[int, Field(ge=1)] | None = Field(None, description="optimiser steps between validations; none: once an epoch")
    checkpoint_every: Annotated[int, Field(ge=1)] | None = Field(
        None, description="optimiser steps between checkpoints; none: at each validation"
    )
    patience: Annotated[int, Field(ge=1)] | None = Field(None, description="validations without a better mean IoU before stopping early")
    processes: Annotated[int, Field(ge=1)] = Field(1, description="on each node; with GPUs, as many as a node has")
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _batch_divides(self) -> TrainingConfig:
        if self.batch_size % (self.processes * self.accumulation):
            raise ValueError(
                f"batch_size {self.batch_size} is global: it must be a multiple of processes × accumulation "
                f"({self.processes} × {self.accumulation})"
            )
        return self


class InferenceConfig(Part):
    """Tiled prediction: the same numbers in validation, evaluation and serving."""

    tile: Annotated[int, Field(ge=64)] = Field(224, description="pixels a side of one forward pass")
    overlap: Annotated[float, Field(ge=0, le=0.75)] = Field(0.25, description="share of a tile's side that it shares with its neighbour")
    batch_size: Annotated[int, Field(ge=1)] = 4


class PromotionConfig(Part):
    """The quality gate, all on the test chips."""

    min_iou: Share = Field(0.5, description="IoU of class 1")
    min_gain_over_baseline: float = Field(0.0, description="IoU of class 1 above the index baseline's")


class FoundryConfig(Part):
    """One run's configuration: everything but the stack."""

    task: TaskConfig
    data: DataConfig
    validation: ValidationConfig = ValidationConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    inference: InferenceConfig = InferenceConfig()
    promotion: PromotionConfig = PromotionConfig()

    def digest(self) -> str:
        """SHA-256 (hex) of the configuration's canonical JSON."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def load_config(
    configs: Path,
    *,
    task: str | None = None,
    file: Path | None = None,
    overrides: tuple[str, ...] = (),
    source: str | None = None,
) -> FoundryConfig:
    """Resolve one run's configuration from its layers.

    Layers, later ones win: `configs/TASK.yaml`, then `file` where it brings no `task:` mapping of its own (an overlay,
    as configs/demo.yaml is), then `source` (--data), then `overrides` (`KEY=VALUE`, VALUE in YAML). A `file` with a
    `task:` mapping stands alone. Without `file`, synthetic data uses demo.yaml, and other data the task's recipe.

    Raises ConfigError with one line naming file, key and what is allowed.
    """
    if file is None and (source is None or source.startswith("synthetic://")):
        file = configs / "demo.yaml"
    layer = _read_yaml(file) if file else {}
    if "task" in layer:
        named = (layer["task"] or {}).get("name") if isinstance(layer["task"], dict) else None
        if task and named != task:
            raise ConfigError(f"{file} is for task '{named}', not '{task}': leave out --task or choose another --config")
        values = layer
    else:
        base = configs / f"{task or 'burn_scars'}.yaml"
        if not base.is_file():
            known = ", ".join(sorted(p.stem for p in configs.glob("*.yaml") if p.stem != "demo"))
            raise ConfigError(f"no configuration for task '{task}': {base} does not exist (known tasks: {known})")
        values = _merge(_read_yaml(base), layer)
    if source:
        values = _merge(values, {"data": {"source": source}})
    for override in overrides:
        values = _merge(values, _override(override))
    try:
        return FoundryConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_one_line(error, str(file) if file else f"configs/{task or 'burn_scars'}.yaml")) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"configuration file {path} does not exist: give --config an existing file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a mapping of configuration keys, not {type(content).__name__}")
    return content


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text}: write KEY=VALUE, for example --set training.epochs=20")
    try:
        nested: Any = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"--set {text}: '{value}' is not a YAML value") from None
    if isinstance(nested, str):
        # YAML 1.1 reads 1e-4 as text; a person means the number.
        with contextlib.suppress(ValueError):
            nested = float(nested)
    *above, last = key.strip().split(".")
    layer: dict[str, Any] = {last: nested}
    for name in reversed(above):
        layer = {name: layer}
    return layer


def _one_line(error: ValidationError, where: str) -> str:
    """The first problem of a pydantic error as one line that names the key."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"] if not isinstance(part, int)) or "the configuration"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key}' in {where} or --set: check its spelling against docs/configuration.md{more}"
    if first["type"] == "missing":
        return f"key '{key}' is missing in {where}{more}"
    return f"'{key}' in {where} or --set: {first['msg'].removeprefix('Value error, ')}, got {first['input']!r:.80}{more}"
