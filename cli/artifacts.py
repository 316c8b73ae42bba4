"""What a run made, loaded from wherever it lies; of what cannot be had, a line that says so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cli.summary import RUN
from steps.names import KEYS, MODEL_BUNDLE

if TYPE_CHECKING:
    from zenml.models import ArtifactVersionResponse, PipelineRunResponse

LARGE = {MODEL_BUNDLE}
"""Artifacts that nobody needs here."""


@dataclass
class Made:
    """`artifacts`: by their keys (steps.names). `missing`: by the same keys, where it should lie and why it could not be read."""

    artifacts: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def made_by(run: PipelineRunResponse) -> Made:
    """The outputs of the run's steps that have ended well."""
    made = Made()
    refused: dict[Any, str] = {}  # why a store cannot be read: it is not asked again for each artifact
    for step in run.steps.values():
        if not step.status.is_successful:
            continue
        for output in (output for outputs in step.outputs.values() for output in outputs if output.name not in LARGE):
            key = KEYS.get(output.name, output.name)
            store = output.artifact_store_id
            if store in refused:
                made.missing[key] = f"{output.uri}: {refused[store]}"
                continue
            try:
                made.artifacts[key] = output.load()
            except Exception as error:  # of any library that reads a store: a report without one picture is better than none
                made.missing[key] = f"{output.uri}: {_reason(error)}"
                if not _is_gone(error) and not _is_local(output):
                    refused[store] = _reason(error)
    return made


def _is_gone(error: Exception) -> bool:
    """Only this artifact was deleted; the store itself answers."""
    return isinstance(error, FileNotFoundError) or "DoesNotExist" in type(error).__name__


def _is_local(output: ArtifactVersionResponse) -> bool:
    return "://" not in output.uri


def _reason(error: Exception) -> str:
    if _is_gone(error):
        return "there is no such file any more"
    if type(error).__name__ == "NoCredentialsError":
        return f'no credentials for AWS: sign in as for the run (one of a rehearsal: eval "$({RUN} rehearsal up)")'
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
