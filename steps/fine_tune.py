"""Fine-tuning by Accelerate: in this process, or in several."""

import logging
from typing import Annotated

from zenml import step

from hls_foundry.chips.inventory import Inventory
from hls_foundry.chips.splits import Splits
from hls_foundry.config import DataConfig, InferenceConfig, ModelConfig, TaskConfig, TrainingConfig
from hls_foundry.home import foundry_home
from hls_foundry.training.fine_tune import FineTuneConfig
from hls_foundry.training.fine_tune import fine_tune as run_fine_tuning
from steps.artifacts import BundleFolder, TrainingHistory
from steps.caching import depends_on
from steps.materializers import BundleMaterializer, ResultMaterializer
from steps.names import MODEL_BUNDLE, TRAINING_HISTORY
from steps.sources import on_this_machine

log = logging.getLogger(__name__)


@step(
    cache_policy=depends_on("chips", "models", "training", "inference"),
    output_materializers={MODEL_BUNDLE: BundleMaterializer, TRAINING_HISTORY: ResultMaterializer},
)
def fine_tune(
    splits: Splits, task: TaskConfig, data: DataConfig, model: ModelConfig, training: TrainingConfig, inference: InferenceConfig
) -> tuple[Annotated[BundleFolder, MODEL_BUNDLE], Annotated[TrainingHistory, TRAINING_HISTORY]]:
    here = on_this_machine(splits, task, data)
    config = FineTuneConfig(task=task, data=data, model=model, training=training, inference=inference)
    lineage = {"data_fingerprint": Inventory(here.table, here.root, task.name).fingerprint}
    bundle, result = run_fine_tuning(here.table, here.root, config, foundry_home(), lineage=lineage)
    log.info(
        "fine-tune   %d steps, best validation mean IoU %.3f at step %d, %.1f samples/s in %s on %s",
        result.steps, result.best["miou"], result.best["step"], result.samples_per_s, result.precision, result.device,
    )  # fmt: skip
    facts = result.model_dump(mode="json", exclude={"history", "architecture", "best", "weights"})
    return BundleFolder(bundle), TrainingHistory(
        records=result.history, facts={key: value for key, value in facts.items() if value is not None}
    )
