"""Register the candidate as a version of the task's model and decide whether it goes into production."""

import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from zenml import get_step_context, step
from zenml.model.utils import link_artifact_version_to_model_version
from zenml.models import ModelVersionResponse
from zenml.utils.metadata_utils import log_metadata

from hls_foundry.chips.splits import Splits
from hls_foundry.config import DataConfig, PromotionConfig, TaskConfig
from hls_foundry.endpoints.archives import archive_here
from hls_foundry.endpoints.settings import AwsSettings
from hls_foundry.errors import EndpointError
from hls_foundry.evaluation.evaluate import EvaluationReport, measure
from hls_foundry.evaluation.metrics import Scores
from hls_foundry.evaluation.promotion import Promotion, decide
from hls_foundry.home import foundry_home
from hls_foundry.models.bundle import load_bundle, unpack_bundle, weights_digest
from steps.artifacts import BundleFolder, PromotionRecord
from steps.lineage import record_run, shown
from steps.materializers import ResultMaterializer
from steps.model_versions import PRODUCTION, production_version, version_of
from steps.names import PROMOTION
from steps.sources import on_this_machine

log = logging.getLogger(__name__)


@step(enable_cache=False, output_materializers=ResultMaterializer)
def promote(
    splits: Splits, bundle: BundleFolder, evaluation: EvaluationReport, task: TaskConfig, data: DataConfig, gate: PromotionConfig
) -> Annotated[PromotionRecord, PROMOTION]:
    """Not cached: what is in production may have changed since the last run."""
    version = version_of(task.name, task.title, weights_digest(bundle.path))
    _link(version)
    known = _facts(bundle, evaluation)
    configured = {"task": task.model_dump(mode="json"), "data": data.model_dump(mode="json")}
    log_metadata(known | configured, model_version_id=version.id)
    record_run(
        {
            **{name: known[name] for name in ("test", "baseline", "code")},
            "model": {"name": version.model.name, "version": version.name},
            "chips": {"source": data.source, "fingerprint": known["data_fingerprint"]},
            "weights": {name: known[name] for name in ("weights_sha256", "weights", "pretrained")},
        }
    )
    production = production_version(task.name)
    compared = {f"version {version.name}": evaluation.test, f"{evaluation.baseline.name} baseline": evaluation.baseline.scores}
    if production is not None and production.id == version.id:
        decision = Promotion(True, f"version {version.name} is in production already")
        return _record(version, decision, compared)
    scores = _measure_production(production, on_this_machine(splits, task, data), data) if production else None
    decision = decide(evaluation.test, evaluation.baseline.scores, scores, gate, baseline_name=evaluation.baseline.name)
    if production and scores:
        compared[f"version {production.name}, in production before"] = scores
    if decision.promote:
        version.set_stage(PRODUCTION, force=True)
    log_metadata({"promotion": decision.reason}, model_version_id=version.id)
    return _record(version, decision, compared)


def _facts(bundle: BundleFolder, evaluation: EvaluationReport) -> dict[str, Any]:
    """What the model's version and the run say of the candidate: its scores, and what it was made from."""
    manifest = json.loads((bundle.path / "model.json").read_text(encoding="utf-8"))
    test = evaluation.test
    return shown(
        {
            "test": {"iou": test.iou, "miou": test.miou, "f1": test.f1, "accuracy": test.accuracy},
            "baseline": {"name": evaluation.baseline.name, "iou": evaluation.baseline.scores.iou},
            "pretrained": manifest["pretrained"],
            "weights": manifest["weights"],
            "weights_sha256": weights_digest(bundle.path),
            "data_fingerprint": manifest["lineage"].get("data_fingerprint"),
            "code": manifest["lineage"].get("code"),
        }
    )


def _record(version: ModelVersionResponse, decision: Promotion, compared: dict[str, Scores]) -> PromotionRecord:
    model, number, reason = version.model.name, version.name, decision.reason
    log.info("promote     %s version %s: %s", model, number, reason)
    stage = PRODUCTION.value if decision.promote else (version.stage or "none")
    return PromotionRecord(model=model, version=number, stage=stage, promoted=decision.promote, reason=reason, compared=compared)


def _link(version: ModelVersionResponse) -> None:
    """Link this step's inputs to the model version, so that its page shows what it was made from."""
    for artifacts in get_step_context().inputs.values():
        for artifact in artifacts if isinstance(artifacts, list) else [artifacts]:
            link_artifact_version_to_model_version(artifact, version)


def _measure_production(production: ModelVersionResponse, splits: Splits, data: DataConfig) -> Scores | None:
    """Scores of the production bundle on these test chips; None when its archive is gone. Raises EndpointError where S3 refuses it."""
    from hls_foundry.inference.predictor import Predictor  # torch takes two seconds to import, and a first version does without

    uri, sha256 = str(production.run_metadata.get("uri", "")), str(production.run_metadata.get("sha256", ""))
    try:
        # In S3 with the usual credentials: on SageMaker the job's role.
        archive = archive_here(uri, sha256, foundry_home() / "archives", AwsSettings())
    except EndpointError as error:
        if uri.startswith("s3://") and "there is no such object" not in str(error):
            raise  # it may well be there: nothing goes into production unmeasured because of that
        log.warning("promote     version %s in production cannot be compared (%s)", production.name, error)
        return None
    with TemporaryDirectory(prefix="hls-production-") as folder:
        unpack_bundle(archive, Path(folder) / "bundle")
        return measure(Predictor(load_bundle(Path(folder) / "bundle")), splits, data)
