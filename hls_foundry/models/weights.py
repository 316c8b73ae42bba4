"""Published Prithvi checkpoints into an encoder: only tensors are ever read from a file, never code."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hls_foundry.errors import WeightsError
from hls_foundry.models.prithvi import PrithviEncoder, position_embedding, resize_position_embedding
from hls_foundry.models.variants import VARIANTS

NESTED = ("model", "state_dict", "model_state_dict")
"""Keys under which training programs file a state dict."""

PREFIXES = ("module.", "model.", "backbone.", "encoder.", "_timm_module.")
"""What wrappers put before the encoder's own keys, in any order and number."""

NOT_ENCODER = ("decoder", "mask_token", "temporal_embed_dec", "location_embed_dec", "neck.", "head.", "auxiliary.", "aux_heads.")
"""Beginnings of the keys that belong to the masked autoencoder's decoder or to decode heads."""

PRETRAINED_SIZE = 224
HUB_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class WeightsReport:
    """What came from a checkpoint. `fresh`: encoder keys that keep their random weights; `ignored`: keys of the file not used."""

    source: str
    sha256: str
    resized_pos_embed: bool
    fresh: list[str]
    ignored: list[str]


def load_encoder_weights(encoder: PrithviEncoder, weights: str, *, sha256: str | None = None, cache: Path | None = None) -> WeightsReport:
    """Load a checkpoint into `encoder`, in place.

    Args:
        weights: path, or hf://OWNER/NAME/FILE, of a `.pt` or safetensors file with a state dict, with or without decoder keys.
        sha256: the file's, in hex; checked before anything is read from it.
        cache: folder for downloads; None is huggingface_hub's own.

    Another image size or number of frames than the file's: the position embedding is resized, or rebuilt (it is never trained).
    Another patch size: the patch embedding stays as it is, and `fresh` names it.

    Raises WeightsError with one line: no such file, unreachable, truncated, pickled code, another digest, another architecture.
    """
    path, digest = fetch_weights(weights, sha256=sha256, cache=cache)
    found, ignored = _encoder_keys(_read(path, weights))
    own = encoder.state_dict()
    _check_keys(found, own, weights)
    fresh: list[str] = []
    file_patch = found["patch_embed.proj.weight"].shape
    if _other_patch_size(file_patch, own["patch_embed.proj.weight"].shape):
        fresh = ["patch_embed.proj.weight", "patch_embed.proj.bias"]
        found |= {name: own[name] for name in fresh}
    resized = found["pos_embed"].shape != own["pos_embed"].shape
    if resized and found["pos_embed"].shape[-1] == encoder.embed_dim:
        found["pos_embed"] = _fit_position_embedding(found["pos_embed"].float(), file_patch[-1], encoder)
    _check_shapes(found, own, weights)
    encoder.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in found.items()}, strict=True)
    return WeightsReport(weights, digest, resized, fresh, ignored)


def fetch_weights(weights: str, *, sha256: str | None = None, cache: Path | None = None) -> tuple[Path, str]:
    """The checkpoint as a file on this machine, downloaded to `cache` unless it is there already, and its SHA-256 (hex).

    Raises WeightsError with one line: no such file, unreachable, another digest than `sha256`.
    """
    path = _local_file(weights, cache)
    digest = _sha256(path)
    if sha256 is not None and digest != sha256.lower():
        raise WeightsError(f"{weights} has SHA-256 {digest}, expected {sha256}: fetch it again or mend model.weights_sha256")
    return path, digest


def _local_file(weights: str, cache: Path | None) -> Path:
    if weights.startswith("hf://"):
        return _from_hub(weights, cache)
    path = Path(weights).expanduser()
    if not path.is_file():
        raise WeightsError(f"no checkpoint at {path}: mend model.weights (a file, hf://OWNER/NAME/FILE, or none)")
    return path


def _from_hub(weights: str, cache: Path | None) -> Path:
    """The file from the local cache, else downloaded. One request with a timeout first: the hub's own client retries for long."""
    owner, _, rest = weights.removeprefix("hf://").partition("/")
    name, _, filename = rest.partition("/")
    if not (owner and name and filename):
        raise WeightsError(f"{weights} is not hf://OWNER/NAME/FILE: mend model.weights")
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
    except ImportError:
        raise WeightsError(f"{weights} needs the package huggingface-hub: pip install 'hls-foundry[pipelines]', or give a path") from None
    repository, endpoint = f"{owner}/{name}", os.environ.get("HF_ENDPOINT")
    options: dict[str, Any] = {"cache_dir": cache, "endpoint": endpoint, "etag_timeout": HUB_TIMEOUT_S}
    advice = "check the network, or download the file elsewhere and set model.weights to its path"
    try:
        try:
            return Path(hf_hub_download(repository, filename, local_files_only=True, **options))
        except LocalEntryNotFoundError:
            get_hf_file_metadata(hf_hub_url(repository, filename, endpoint=endpoint), timeout=HUB_TIMEOUT_S)
            logging.getLogger(__name__).info("weights     downloading %s", weights)
            return Path(hf_hub_download(repository, filename, **options))
    except GatedRepoError:
        raise WeightsError(f"{weights} asks for a licence to be accepted: accept it on the hub and set HF_TOKEN") from None
    except OfflineModeIsEnabled:
        offline_advice = "python run.py fetch where there is a network, or set model.weights to a path"
        raise WeightsError(f"{weights} has not been fetched and HF_HUB_OFFLINE is set: {offline_advice}") from None
    except HfHubHTTPError as error:
        code = getattr(error.response, "status_code", None)
        if code in (401, 403, 404):
            raise WeightsError(f"{weights} does not exist on the hub, or is private: check its spelling, or set HF_TOKEN") from None
        raise WeightsError(f"{weights} cannot be fetched (HTTP {code}): {advice}") from None
    except Exception as error:  # each transport of the hub's client has errors of its own
        raise WeightsError(f"{weights} cannot be fetched ({' '.join(str(error).split()):.160}): {advice}") from None


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}): check its permissions") from None


def _read(path: Path, weights: str) -> dict[str, Tensor]:
    """The state dict of a file, told apart by its first bytes: safetensors, torch's zip, or torch's older format."""
    with path.open("rb") as file:
        start = file.read(9)
    try:
        if start[8:9] == b"{":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=start.startswith(b"PK"))
    except pickle.UnpicklingError as error:
        if name := re.search(r"(?:GLOBAL|global|class) `?([\w.]+[\w])", str(error)):
            raise WeightsError(
                f"{weights} holds pickled code ({name[1]}), which is not run: use the published file, or a safetensors file"
            ) from None
        raise WeightsError(f"{weights} is no checkpoint, or damaged: fetch it again") from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError) as error:
        # what torch raises on damaged files depends on where they are damaged
        raise WeightsError(f"{weights} is damaged or cut short ({' '.join(str(error).split()):.100}): fetch it again") from None
    for _ in NESTED:
        for key in NESTED:
            if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
                content = content[key]
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise WeightsError(f"{weights} holds no state dict: give a published Prithvi checkpoint")
    return tensors


def _encoder_keys(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """(the encoder's tensors by plain keys, the file's keys of decoders and heads)."""
    encoder: dict[str, Tensor] = {}
    ignored: list[str] = []
    for key, tensor in state.items():
        plain = key
        while prefix := next((p for p in PREFIXES if plain.startswith(p)), None):
            plain = plain.removeprefix(prefix)
        if plain.startswith(NOT_ENCODER):
            ignored.append(key)
        else:
            encoder[plain] = tensor
    return encoder, ignored


def describe(state: Mapping[str, Tensor]) -> str:
    """What an encoder's state dict looks like: `v2_300 (width 1024, 24 blocks, patch 16)`."""
    if "norm.weight" not in state or "patch_embed.proj.weight" not in state:
        return "no Prithvi encoder"
    width, patch = len(state["norm.weight"]), state["patch_embed.proj.weight"].shape[-1]
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    coordinates = "temporal_embed_enc.scale" in state
    names = [n for n, v in VARIANTS.items() if (v.embed_dim, v.depth, bool(v.coords_encoding)) == (width, depth, coordinates)]
    shape = f"width {width}, {depth} blocks, patch {patch}{', time and location' if coordinates else ''}"
    return f"{names[0]} ({shape})" if names else f"no known variant ({shape})"


def _check_keys(found: Mapping[str, Tensor], own: Mapping[str, Tensor], weights: str) -> None:
    missing = [key for key in own if key not in found]
    unexpected = [key for key in found if key not in own]
    problems = [
        f"{len(keys)} keys {what} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        for what, keys in (("missing", missing), ("unexpected", unexpected))
        if keys
    ]
    if problems:
        raise WeightsError(_another(weights, found, own, " and ".join(problems)))


def _check_shapes(found: Mapping[str, Tensor], own: Mapping[str, Tensor], weights: str) -> None:
    for key, tensor in found.items():
        if tensor.shape != own[key].shape:
            difference = f"{key} is {tuple(tensor.shape)} instead of {tuple(own[key].shape)}"
            raise WeightsError(_another(weights, found, own, difference))
        if not tensor.isfinite().all():
            raise WeightsError(f"{weights}: {key} holds values that are not numbers; fetch it again")


def _another(weights: str, found: Mapping[str, Tensor], own: Mapping[str, Tensor], difference: str) -> str:
    return f"{weights} looks like {describe(found)}, the model is {describe(own)}: {difference}; mend model.variant or model.weights"


def _other_patch_size(file: torch.Size, own: torch.Size) -> bool:
    """Whether two patch embeddings (D, C, pt, ph, pw) differ in their patch alone."""
    return len(file) == 5 and file[:2] == own[:2] and file[2:] != own[2:]


def _fit_position_embedding(embedding: Tensor, patch: int, encoder: PrithviEncoder) -> Tensor:
    """The file's position embedding on the grid of `encoder`; where the file's grid cannot be told, sines and cosines anew."""
    patches = embedding.shape[1] - 1
    published = PRETRAINED_SIZE // patch
    if patches % published**2 == 0:
        grid = (patches // published**2, published, published)
    elif isqrt(patches) ** 2 == patches:
        grid = (1, isqrt(patches), isqrt(patches))
    else:
        return position_embedding(encoder.embed_dim, encoder.grid)
    return resize_position_embedding(embedding, grid, encoder.grid)
