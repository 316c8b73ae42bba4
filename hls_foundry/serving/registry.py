"""The models in memory: the one of a single-model server, or those that a multi-model platform loads and unloads."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hls_foundry.errors import BundleError, FoundryError, RequestError
from hls_foundry.serving.logs import log

if TYPE_CHECKING:
    from hls_foundry.inference.predictor import Predictor
    from hls_foundry.models.bundle import Bundle

MB = 1024 * 1024
WEIGHTS, ARCHIVE = "model.safetensors", "model.tar.gz"


@dataclass(frozen=True)
class LoadedModel:
    """A model that answers."""

    name: str
    url: str
    bundle: Bundle
    predictor: Predictor
    size: int  # bytes of its weights


def load_model(name: str, folder: Path, *, sha256: Collection[str] = ()) -> LoadedModel:
    """The bundle in `folder` (its files, or model.tar.gz), ready and warmed up.

    `sha256`: digests that are good, each of the archive, of the weights file, or the bundle's own, whichever travelled along; none: all.
    Raises BundleError (one line) for an empty folder, one that this user may not read, a bundle of another schema or another digest.
    """
    try:
        return _load(name, folder, sha256)
    except OSError as error:  # a container's user is not the one who wrote the bundle; an archive needs a place to unpack it
        raise BundleError(f"the model in {folder} cannot be loaded by user {os.getuid()}: {error.strerror or error}") from None


def _load(name: str, folder: Path, sha256: Collection[str]) -> LoadedModel:
    if not any((folder / file).is_file() for file in ("model.json", ARCHIVE)):
        raise BundleError(f"{folder} holds no model: it needs a bundle's model.json and {WEIGHTS}, or {ARCHIVE}")
    # torch comes in here and not at the top: the server listens, and says "not yet" to /ping, while this takes its second.
    import numpy as np

    from hls_foundry.inference.predictor import Predictor
    from hls_foundry.models.bundle import load_bundle, unpack_bundle, weights_digest

    if (folder / "model.json").is_file():
        bundle = load_bundle(folder)
        digests = {bundle.sha256, weights_digest(folder)}
    else:
        digests = {_sha256(folder / ARCHIVE)}
        unpacked = Path(tempfile.mkdtemp(prefix="hls-bundle-"))
        try:
            unpack_bundle(folder / ARCHIVE, unpacked)
            bundle = load_bundle(unpacked)
            digests |= {bundle.sha256, weights_digest(unpacked)}
        finally:
            shutil.rmtree(unpacked, ignore_errors=True)
    if sha256 and digests.isdisjoint(sha256):
        wanted = " or ".join(sorted(sha256))
        raise BundleError(f"the model in {folder} has digest {bundle.sha256}, not {wanted} (HLS_MODEL_SHA256): fetch it again")
    predictor = Predictor(bundle)
    # The first pass of a process prepares kernels; the first client should not wait for that.
    predictor.probabilities(np.zeros((6, predictor.tile, predictor.tile), np.float32))
    return LoadedModel(name, str(folder), bundle, predictor, sum(p.numel() * p.element_size() for p in bundle.model.parameters()))


class ModelRegistry:
    """Models by name. Safe to use from several threads; loading happens outside the lock."""

    def __init__(self, memory_mb: float | None, load: Callable[[str, Path], LoadedModel] = load_model) -> None:
        self._budget = int(memory_mb * MB) if memory_mb else None
        self._load = load
        self._lock = threading.Lock()
        self._models: dict[str, LoadedModel] = {}
        self._coming: dict[str, int] = {}  # names being loaded, with their estimated bytes

    def put(self, model: LoadedModel) -> None:
        """Hold a model that was loaded elsewhere."""
        with self._lock:
            self._models[model.name] = model

    def load(self, name: str, url: str) -> LoadedModel:
        """Load the bundle in the local folder `url`.

        Raises RequestError: 409 the name is loaded, 507 memory is short, 422 no usable bundle there.
        """
        folder = Path(url.removeprefix("file://"))
        need = _load_bytes(folder)
        with self._lock:
            if name in self._models or name in self._coming:
                raise RequestError(409, "already_loaded", f"a model of the name {name[:80]} is loaded: unload it first")
            self._check_memory(name, need)
            self._coming[name] = need
        try:
            model = self._load(name, folder)
            with self._lock:
                self._models[name] = model
        except MemoryError:
            raise self._short(name, need) from None
        except FoundryError as error:
            log.error("load_failed model=%s: %s", name, error)
            detail = str(error).replace(str(folder), "the folder given")
            raise RequestError(422, "bad_model", detail) from None
        finally:
            with self._lock:
                del self._coming[name]
        return model

    def get(self, name: str) -> LoadedModel:
        """Raises RequestError 404."""
        with self._lock:
            if name not in self._models:
                raise RequestError(404, "unknown_model", f"no model of the name {name[:80]} is loaded")
            return self._models[name]

    def unload(self, name: str) -> None:
        """Forget the model; requests that it is answering finish. Raises RequestError 404."""
        self.get(name)
        with self._lock:
            self._models.pop(name, None)

    def names(self) -> list[str]:
        """In the order of loading."""
        with self._lock:
            return list(self._models)

    def _check_memory(self, name: str, need: int) -> None:
        if self._budget is not None:
            held = sum(model.size for model in self._models.values()) + sum(self._coming.values())
            if held + need > self._budget:
                raise self._short(name, need)
        elif need + sum(self._coming.values()) > available_bytes():
            raise self._short(name, need)

    def _short(self, name: str, need: int) -> RequestError:
        detail = f"model {name[:80]} needs about {max(1, need // MB)} MB, more than is free: unload another model first"
        return RequestError(507, "memory_short", detail)


def _load_bytes(folder: Path) -> int:
    """What loading takes: the weights, and half of that for a pass in bfloat16. An archive is as large as its content, which is stored."""
    try:
        sizes = [(folder / name).stat().st_size for name in (WEIGHTS, ARCHIVE) if (folder / name).is_file()]
    except OSError:
        return 0  # loading will say what is wrong
    return max(sizes, default=0) * 3 // 2


def available_bytes() -> int:
    """Memory that can still be had: the least of the machine's and the container's (cgroup v2 or v1), in bytes."""
    memory = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free = [int(line.split()[1]) * 1024 for line in memory if line.startswith("MemAvailable")]
    cgroup = Path("/sys/fs/cgroup")
    for limit, used, stat, cache in (
        (cgroup / "memory.max", cgroup / "memory.current", cgroup / "memory.stat", "inactive_file"),
        (
            cgroup / "memory/memory.limit_in_bytes",
            cgroup / "memory/memory.usage_in_bytes",
            cgroup / "memory/memory.stat",
            "total_inactive_file",
        ),
    ):
        try:
            most = int(limit.read_text(encoding="ascii"))
            reclaimable = [int(line.split()[1]) for line in stat.read_text(encoding="ascii").splitlines() if line.split()[0] == cache]
            free.append(most - int(used.read_text(encoding="ascii")) + sum(reclaimable))
        except (OSError, ValueError):
            continue  # no such controller here, or "max"
    return min(free)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
