"""What the lineage says beside the graph: facts of each artifact, where each step ran and with what code, and what a run came to."""

from __future__ import annotations

import json
import math
import platform
from importlib import metadata
from typing import Any

from zenml import get_step_context
from zenml.metadata.metadata_types import MetadataType
from zenml.utils.metadata_utils import log_metadata

from hls_foundry.chips.inventory import Inventory
from hls_foundry.chips.splits import Splits
from hls_foundry.endpoints.deployed import Deployed
from hls_foundry.endpoints.inference_test import InferenceTestReport
from hls_foundry.endpoints.publish import Published
from hls_foundry.evaluation.evaluate import EvaluationReport
from hls_foundry.models.bundle import weights_digest
from hls_foundry.revision import code_version, package_versions
from hls_foundry.validation.report import ValidationReport
from steps.artifacts import BundleFolder, PlacedModels, PromotionRecord, PublishedModel, TrainingHistory

Facts = dict[str, MetadataType]


def facts_of(data: Any) -> Facts:
    """What the metadata tab of an artifact shows; {} for what has no facts beyond its picture."""
    return shown(_facts(data))


def shown(value: Any) -> Any:
    """`value` as ZenML stores it: without what is None, and NaN, which JSON lacks, in words."""
    if isinstance(value, dict):
        return {name: shown(one) for name, one in value.items() if one is not None}
    return "n/a" if isinstance(value, float) and math.isnan(value) else value


def _facts(data: Any) -> dict[str, Any]:
    match data:
        case Inventory():
            return {"chips": len(data.table), "fingerprint": data.fingerprint}
        case ValidationReport():
            failed = [check.name for check in data.checks if not check.passed]
            chips = {"valid": len(data.inventory.table), "quarantined": len(data.quarantined)}
            return {**chips, "checks": len(data.checks), "failed_checks": failed}
        case Splits():
            return {str(name): int(count) for name, count in data.table["split"].value_counts().items()}
        case BundleFolder():
            return _bundle_facts(data)
        case TrainingHistory():
            return dict(data.facts)
        case EvaluationReport() | InferenceTestReport():
            return dict(data.summary())
        case PromotionRecord():
            return _chosen(data, "model", "version", "stage", "promoted", "reason")
        case Published():
            return _chosen(data, "uri", "sha256")
        case PublishedModel():
            return _chosen(data, "model", "version", "stage", "uri", "sha256", "pretrained")
        case PlacedModels():
            return {placed.model.model: {"version": placed.model.version, "uri": placed.uri} for placed in data.models}
        case Deployed():
            return {"state": data.state, **_chosen(data, "name", "target", "kind", "url", "model_version", "sha256", "since")}
    return {}


def _bundle_facts(bundle: BundleFolder) -> dict[str, Any]:
    """Weights and digest, the encoder that they started from, and all that decided them."""
    manifest = json.loads((bundle.path / "model.json").read_text(encoding="utf-8"))
    return {
        "weights_sha256": weights_digest(bundle.path),
        "encoder": {name: manifest[name] for name in ("pretrained", "weights", "weights_sha256")},
        "metrics": manifest["metrics"],
        "lineage": manifest["lineage"],
    }


def record_surroundings() -> None:
    """A hook for the end of a step: where it ran, and with what code and packages."""
    packages = package_versions() | {name: metadata.version(name) for name in ("great-expectations", "zenml")}
    log_metadata(
        {
            "code": code_version(),
            "environment": {"machine": platform.node(), "system": platform.platform(), "python": platform.python_version(), **packages},
        }
    )


def record_run(facts: dict[str, Any]) -> None:
    """Metadata of the run that this step belongs to."""
    log_metadata(metadata=shown(facts), run_id_name_or_prefix=get_step_context().pipeline_run.id)


def _chosen(data: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(data, name) for name in names}
