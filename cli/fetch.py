"""Brings what a run needs from elsewhere, chips and published weights, to this installation's home: its jobs may have no network."""

from __future__ import annotations

from pathlib import Path

import click

from hls_foundry.config import FoundryConfig
from hls_foundry.home import foundry_home
from hls_foundry.progress import progress_bar


def fetch(config: FoundryConfig) -> None:
    """Fetch the chips and the checkpoint that `config` names, and say what came, how much of it, and where it lies.

    Raises SourceError or WeightsError, one line, where something cannot be had.
    """
    _say("chips", _chips(config, foundry_home() / "data"))
    _say("weights", _weights(config, foundry_home() / "weights"))


def _chips(config: FoundryConfig, cache: Path) -> str:
    from hls_foundry.chips.sources import resolve_source

    source = config.data.source
    before = set(cache.iterdir()) if cache.is_dir() else set()
    known = _recalled(config, cache)
    with progress_bar("chips") as progress:
        folder = resolve_source(source, config.task, cache, progress=progress)
    if "://" not in source:
        return f"nothing to fetch, they lie in {folder}"
    files, size = _size(folder)
    if folder in before or folder == known:
        return f"nothing to fetch, {files} files ({size}) of {source} are in {folder}"
    return f"fetched {files} files ({size}) of {source} to {folder}"


def _recalled(config: FoundryConfig, cache: Path) -> Path | None:
    from hls_foundry.chips.fetched import recall
    from hls_foundry.errors import SourceError

    try:
        return recall(cache, config.data.source, config.task.layout)
    except SourceError:
        return None


def _weights(config: FoundryConfig, cache: Path) -> str:
    weights = config.model.weights
    if weights == "none":
        return "nothing to fetch, the encoder starts from random weights"
    from hls_foundry.models.weights import fetch_weights

    before = {path for path in cache.rglob("*") if path.is_file()} if cache.is_dir() else set()
    path, digest = fetch_weights(weights, sha256=config.model.weights_sha256, cache=cache)
    told = f"{_words(path.stat().st_size)}, SHA-256 {digest[:12]}…"
    if not weights.startswith("hf://"):
        return f"nothing to fetch, {path} is here ({told})"
    return f"nothing to fetch, {weights} is in {cache} ({told})" if path in before else f"fetched {weights} ({told}) to {cache}"


def _size(folder: Path) -> tuple[int, str]:
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return len(sizes), _words(sum(sizes))


def _words(size: float) -> str:
    """Bytes in the unit that a person would choose."""
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def _say(what: str, line: str) -> None:
    click.echo(f"{what:<11} {line}", err=True)
