"""Lets a step's process start without importing every integration that is installed beside ZenML (torch, pandas, scipy: 3 s of CPU)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zenml.integrations.registry import integration_registry
from zenml.materializers.base_materializer import BaseMaterializer
from zenml.materializers.materializer_registry import MaterializerRegistry, materializer_registry


class OnDemandRegistry(MaterializerRegistry):  # type: ignore[misc]  # ZenML's classes are not read by mypy
    """ZenML's registry, which activates the integrations as soon as a type is asked for that it does not hold itself.

    The answer is ZenML's own: a type that is registered is the first of its own bases, and what integrations add does not change it.
    """

    activate: Callable[[], None]
    activated: bool

    def __getitem__(self, key: type[Any]) -> type[BaseMaterializer]:
        if key not in self.materializer_types and not self.activated:
            self.activated = True
            self.activate()
        return super().__getitem__(key)  # type: ignore[no-any-return]


def activate_on_demand() -> None:
    """From now on ZenML's entry points, which activate all integrations first, leave that to the first type that needs one.

    Materializers of annotated outputs and of inputs are known by name since the pipeline was compiled; a step that returns an
    unannotated tensor, or saves one itself, still finds torch's.
    """
    if isinstance(materializer_registry, OnDemandRegistry):
        return
    activate = integration_registry.activate_integrations
    materializer_registry.__class__ = OnDemandRegistry  # modules hold the one registry by name
    materializer_registry.activate, materializer_registry.activated = activate, False
    integration_registry.activate_integrations = lambda: None
