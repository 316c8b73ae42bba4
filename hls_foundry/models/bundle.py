"""The model bundle: a folder with model.safetensors, model.json and README.md, and the archive model.tar.gz made of it."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError

from hls_foundry.chips.bands import BANDS
from hls_foundry.errors import BundleError, ConfigError
from hls_foundry.models.model_card import render_model_card

if TYPE_CHECKING:
    from hls_foundry.models.segmenter import Segmenter

__all__ = [
    "Bundle", "BundleManifest", "load_bundle", "pack_bundle", "render_model_card",
    "save_bundle", "unpack_bundle", "weights_digest", "with_metrics",
]  # fmt: skip

SCHEMA_VERSION = 1
WEIGHTS, MANIFEST, CARD = "model.safetensors", "model.json", "README.md"
LIMITS = {WEIGHTS: 8 << 30, MANIFEST: 4 << 20, CARD: 4 << 20}
"""The files of a bundle and the most bytes that each may have when unpacked."""

MAX_ENTRIES = 64
CHUNK = 1 << 20
Figure = float | int | str | None


class BundleManifest(BaseModel):
    """model.json: all that a predictor needs besides the weights, and where the model comes from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    task: str
    title: str
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    bands: Annotated[tuple[str, ...], Field(min_length=6, max_length=6)] = BANDS
    scale: Annotated[float, Field(gt=0)] = Field(0.0001, description="integer file values × scale = reflectance")
    mean: Annotated[tuple[float, ...], Field(min_length=6, max_length=6)]
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=6, max_length=6)]
    architecture: dict[str, Any]
    tile: Annotated[int, Field(ge=32)] = 224
    overlap: Annotated[float, Field(ge=0, le=0.75)] = 0.25
    batch_size: Annotated[int, Field(ge=1)] = 4
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="arithmetic of predictions: masks agree only at equal precision")
    metrics: dict[str, dict[str, Figure]] = Field(default_factory=dict, description="scores by split; baseline has a name as well")
    lineage: dict[str, str | int | float] = Field(default_factory=dict)
    pretrained: bool = False
    weights: str = Field("none", description="where the encoder's weights came from")
    weights_sha256: str | None = None
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @model_validator(mode="after")
    def _classes_are_the_models(self) -> BundleManifest:
        if self.architecture.get("classes") != len(self.classes):
            raise ValueError(f"{len(self.classes)} class names for an architecture of {self.architecture.get('classes')} classes")
        return self


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle. `model` is in evaluation mode, float32, without gradients; `sha256` covers model.json and the weights."""

    model: Segmenter
    manifest: BundleManifest
    folder: Path
    sha256: str


def save_bundle(folder: Path, model: Segmenter, manifest: BundleManifest) -> Path:
    """Write the bundle, LoRA merged, weights as float32. Whatever was at `folder` is replaced once the new one is whole.

    Raises BundleError with one line; then nothing of the new bundle is left, and an earlier one stays.
    """
    import torch  # here and in load_bundle only: its import takes two seconds, and most of what is done with bundles goes without
    from safetensors.torch import save_file

    from hls_foundry.models.tuning import merged_state

    state = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in merged_state(model).items()}
    with _whole_folder(folder) as partial:
        save_file(state, partial / WEIGHTS, metadata={"format": "pt"})
        _write_manifest(partial, manifest)
    return folder


def with_metrics(bundle: Path, folder: Path, *, metrics: Mapping[str, Mapping[str, Figure]], version: str) -> Path:
    """A copy of the bundle at `folder` whose model.json and card have these metrics as well, and the model version.

    Raises BundleError.
    """
    manifest = read_manifest(bundle)
    merged = {**manifest.metrics, **{split: dict(scores) for split, scores in metrics.items()}}
    final = manifest.model_copy(update={"metrics": merged, "lineage": {**manifest.lineage, "version": version}})
    with _whole_folder(folder) as partial:
        shutil.copyfile(bundle / WEIGHTS, partial / WEIGHTS)
        _write_manifest(partial, final)
    return folder


def read_manifest(folder: Path) -> BundleManifest:
    """model.json of the bundle. Raises BundleError for a missing, broken or newer one."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BundleError(f"{folder} is no model bundle: it has no {MANIFEST}") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read ({' '.join(str(error).split())}): fetch the bundle again") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if not isinstance(version, int):
        raise BundleError(f"{path} is no model bundle's: it has no schema_version")
    if version > SCHEMA_VERSION:
        raise BundleError(f"{path} has schema version {version}, this HLS Foundry reads up to {SCHEMA_VERSION}: update hls-foundry")
    try:
        return BundleManifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "content"
        raise BundleError(f"{path}: {key}: {first['msg'].removeprefix('Value error, ')}; fetch the bundle again") from None


def load_bundle(folder: Path) -> Bundle:
    """The model with its weights, on the CPU.

    Raises BundleError with one line for a missing or truncated file, a newer schema, or weights of another architecture.
    """
    import torch
    from safetensors.torch import load_file

    from hls_foundry.models.segmenter import WithoutRandomWeights, segmenter_from_architecture

    manifest = read_manifest(folder)
    path = folder / WEIGHTS
    try:
        state = load_file(path)
        digest = _digest(folder)
    except FileNotFoundError:
        if path.is_file():  # safetensors says the same of a file that it may not open
            raise BundleError(f"{path} cannot be read by user {os.getuid()}: Permission denied") from None
        raise BundleError(f"{folder} has no {WEIGHTS}: fetch the bundle again") from None
    except (OSError, SafetensorError) as error:
        raise BundleError(
            f"{path} cannot be read ({' '.join(str(error).split())}): it is damaged or cut short; fetch the bundle again"
        ) from None
    try:
        with WithoutRandomWeights():
            model = segmenter_from_architecture(manifest.architecture)
    except ConfigError as error:
        raise BundleError(f"{folder / MANIFEST}: {error}") from None
    if other := [name for name, tensor in state.items() if tensor.dtype != torch.float32]:
        raise BundleError(f"{path}: {other[0]} is {state[other[0]].dtype}, a bundle's weights are float32; fetch the bundle again")
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise BundleError(f"{path} does not fit the architecture in {MANIFEST} ({reason:.200}): fetch the bundle again") from None
    return Bundle(model.eval().requires_grad_(False), manifest, folder, digest)


def weights_digest(folder: Path) -> str:
    """SHA-256 (hex) of the bundle's weights file. Raises BundleError."""
    try:
        return _sha256(folder / WEIGHTS)
    except OSError as error:
        raise BundleError(f"{folder / WEIGHTS} cannot be read ({error.strerror}): fetch the bundle again") from None


def pack_bundle(folder: Path, archive: Path) -> str:
    """Write the bundle as a tar.gz and return its SHA-256 (hex): the same bundle gives the same bytes.

    Nothing of the archive depends on the machine: names sorted, times, owners and permissions fixed. The weights are stored
    rather than deflated: float32 weights shrink by 8 %, and a cold start waits for inflating. Raises BundleError.
    """
    read_manifest(folder)
    if not (folder / WEIGHTS).is_file():
        raise BundleError(f"{folder} has no {WEIGHTS}: fetch the bundle again")
    partial = archive.with_name(f".{archive.name}.{os.getpid()}.partial")
    try:
        with (
            partial.open("wb") as file,
            gzip.GzipFile("", "wb", compresslevel=0, fileobj=file, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for name in sorted(LIMITS):
                if (folder / name).is_file():
                    _add(tar, folder / name)
        _flush_to_disk(partial)
        digest = _sha256(partial)
        partial.replace(archive)
    except OSError as error:
        raise BundleError(f"{archive} cannot be written ({error.strerror or error}): free some space or choose another place") from None
    finally:
        partial.unlink(missing_ok=True)
    return digest


def unpack_bundle(archive: Path, folder: Path) -> Path:
    """Unpack model.tar.gz into `folder`, which appears once it is whole.

    Only the three files of a bundle are written, by names of our own; an archive with a link, a device, an absolute path or `..`
    is refused as a whole, and so is one that unpacks to more than a bundle may have. Raises BundleError.
    """
    if not archive.is_file():
        raise BundleError(f"{archive} does not exist: give a model.tar.gz")
    with _whole_folder(folder) as partial:
        try:
            with tarfile.open(archive, mode="r|gz") as tar:
                for count, member in enumerate(tar, start=1):
                    if count > MAX_ENTRIES:
                        raise BundleError(f"{archive} is refused: it has more than {MAX_ENTRIES} entries, a bundle has {len(LIMITS)}")
                    _extract(tar, member, partial, archive)
        except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise BundleError(f"{archive} is no whole tar.gz ({' '.join(str(error).split())}): fetch it again") from None
        for name in (MANIFEST, WEIGHTS):
            if not (partial / name).is_file():
                raise BundleError(f"{archive} holds no {name}: it is not a model bundle")
    return folder


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, archive: Path) -> None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or not (member.isreg() or member.isdir()):
        raise BundleError(f"{archive} is refused: its entry {member.name!r:.120} is a link, a device or leads out of the folder")
    limit = LIMITS.get(str(path), LIMITS[CARD])  # str() of a path drops a leading ./
    if member.size > limit:
        raise BundleError(f"{archive} is refused: {member.name!r:.120} unpacks to {member.size:,} bytes, at most {limit:,} are allowed")
    if str(path) not in LIMITS or not member.isreg():
        return
    if (folder / path).exists():
        raise BundleError(f"{archive} is refused: it holds {path} twice")
    source = tar.extractfile(member)
    assert source is not None  # a regular file
    with (folder / path).open("xb") as target:
        shutil.copyfileobj(source, target, CHUNK)


def _add(tar: tarfile.TarFile, path: Path) -> None:
    entry = tarfile.TarInfo(path.name)  # owner 0, time 0, no names
    entry.size = path.stat().st_size
    entry.mode = 0o644
    with path.open("rb") as file:
        tar.addfile(entry, file)


def _write_manifest(folder: Path, manifest: BundleManifest) -> None:
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (folder / CARD).write_text(render_model_card(manifest), encoding="utf-8")


@contextlib.contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` that takes its name when the block has ended well, and is removed when not."""
    partial: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
        partial.chmod(0o755)
        yield partial
        for file in partial.iterdir():
            file.chmod(0o644)
            _flush_to_disk(file)
        if folder.is_dir() and any(folder.iterdir()):
            aside = partial.with_suffix(".replaced")
            folder.replace(aside)  # a folder that is not empty cannot be renamed over
            try:
                partial.replace(folder)
            except BaseException:
                aside.replace(folder)
                raise
            shutil.rmtree(aside, ignore_errors=True)
        else:
            partial.replace(folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise BundleError(f"model bundle {folder} cannot be written ({reason}): free some space or choose another folder") from None
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _digest(folder: Path) -> str:
    return hashlib.sha256(f"{MANIFEST} {_sha256(folder / MANIFEST)}\n{WEIGHTS} {_sha256(folder / WEIGHTS)}\n".encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
