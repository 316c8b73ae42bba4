"""What a command's runs made, as the JSON of design.md and as lines for a person."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hls_foundry.errors import FoundryError

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse


class Summary:
    """Grows with each run; `write` prints it and saves it."""

    def __init__(self, stack: str, task: str) -> None:
        self.stack, self.task = stack, task
        self.status = "completed"
        self.problem: Exception | None = None
        self.blocks: dict[str, Any] = {}
        self.runs: list[dict[str, Any]] = []
        self.timings: dict[str, float] = {}
        self.artifacts: dict[str, Any] = {}
        self.reasons: list[str] = []

    @property
    def exit_code(self) -> int:
        """0 done, 2 what the user can mend, 1 a failed run."""
        if self.status == "completed":
            return 0
        return 2 if isinstance(self.problem, FoundryError) else 1

    def add(self, pipeline: str, run: PipelineRunResponse) -> None:
        """Take over what `run` made; steps that did not get that far leave no block."""
        from zenml.utils.dashboard_utils import get_run_url

        self.runs.append({"pipeline": pipeline, "id": str(run.id), "name": run.name, "url": get_run_url(run), "status": run.status.value})
        for name, step in run.steps.items():
            cached = step.status.value == "cached"
            if step.start_time and step.end_time:
                self.timings[name] = 0.0 if cached else round((step.end_time - step.start_time).total_seconds(), 2)
            if step.status.is_successful:
                for output in step.outputs.values():
                    self.artifacts.update({artifact.name: artifact.load() for artifact in output if artifact.name not in ("model_bundle",)})
        self._data()
        self._metrics()
        self._endpoint()

    def fail(self, problem: Exception) -> None:
        """The command failed for this reason."""
        self.status, self.problem = "failed", problem

    def as_json(self) -> dict[str, Any]:
        """The summary of design.md."""
        return {"status": self.status, "stack": self.stack, "task": self.task, "runs": self.runs, **self.blocks, "timings_s": self.timings}
