"""What a check of the cluster, the store or a compute node found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `remedy` says what to do when it is not right."""

    name: str
    passed: bool
    found: str
    remedy: str = ""
