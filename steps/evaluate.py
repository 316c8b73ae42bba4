"""The bundle on whole test chips, against the spectral index."""

import logging
from typing import Annotated

from zenml import step

from hls_foundry.chips.splits import Splits
from hls_foundry.config import DataConfig, TaskConfig
from hls_foundry.evaluation.evaluate import EvaluationReport
from hls_foundry.evaluation.evaluate import evaluate as evaluate_predictor
from hls_foundry.models.bundle import load_bundle
from hls_foundry.progress import progress_bar
from steps.artifacts import BundleFolder
from steps.caching import depends_on
from steps.materializers import ResultMaterializer
from steps.names import EVALUATION
from steps.sources import on_this_machine

log = logging.getLogger(__name__)


@step(cache_policy=depends_on("chips", "models", "inference", "evaluation"), output_materializers=ResultMaterializer)
def evaluate(splits: Splits, bundle: BundleFolder, task: TaskConfig, data: DataConfig) -> Annotated[EvaluationReport, EVALUATION]:
    from hls_foundry.inference.predictor import Predictor  # torch takes two seconds to import, and others only name this step

    with progress_bar("evaluate") as progress:
        report = evaluate_predictor(Predictor(load_bundle(bundle.path)), on_this_machine(splits, task, data), data, task, progress=progress)
    log.info(
        "evaluate    test IoU %.3f, mean IoU %.3f; %s baseline %.3f",
        report.test.iou,
        report.test.miou,
        report.baseline.name,
        report.baseline.scores.iou,
    )
    return report
