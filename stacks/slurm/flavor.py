"""The ZenML flavor `slurm`: pipelines as graphs of Slurm jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenml.orchestrators import BaseOrchestratorFlavor

from stacks.slurm.settings import SlurmOrchestratorConfig

if TYPE_CHECKING:
    from stacks.slurm.orchestrator import SlurmOrchestrator

FLAVOR = "slurm"


class SlurmOrchestratorFlavor(BaseOrchestratorFlavor):  # type: ignore[misc]  # ZenML's classes are not read by mypy
    """Each step a Slurm job, the pipeline's edges as their dependencies, all submitted at once."""

    @property
    def name(self) -> str:
        return FLAVOR

    @property
    def config_class(self) -> type[SlurmOrchestratorConfig]:
        return SlurmOrchestratorConfig

    @property
    def implementation_class(self) -> type[SlurmOrchestrator]:
        from stacks.slurm.orchestrator import SlurmOrchestrator

        return SlurmOrchestrator
