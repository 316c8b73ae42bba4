"""Bring the chips that a cached table refers to back to this machine."""

from dataclasses import replace

from hls_foundry.chips.sources import resolve_source
from hls_foundry.chips.splits import Splits
from hls_foundry.config import DataConfig, TaskConfig
from hls_foundry.home import foundry_home


def on_this_machine(splits: Splits, task: TaskConfig, data: DataConfig) -> Splits:
    """`splits` with its root where the chips lie now: a cached table outlives its files, and other machines keep them elsewhere."""
    return replace(splits, root=resolve_source(data.source, task, foundry_home() / "data"))
