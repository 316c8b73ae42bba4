"""chips → inventory → valid inventory → splits → model bundle → report → model version → model.tar.gz."""

from __future__ import annotations

from zenml import pipeline

from hls_foundry.config import FoundryConfig
from hls_foundry.endpoints.settings import PublishSettings
from steps.evaluate import evaluate
from steps.fine_tune import fine_tune
from steps.ingest import ingest
from steps.lineage import record_surroundings
from steps.promote import promote
from steps.publish import publish
from steps.split import split
from steps.validate import validate

STEPS = ("ingest", "validate", "split", "fine_tune", "evaluate", "promote", "publish")


@pipeline(name="train", enable_cache=True, on_success=record_surroundings)
def train_pipeline(config: FoundryConfig, publishing: PublishSettings, source_fingerprint: str) -> None:
    """`source_fingerprint` changes when the files behind `config.data.source` do, so that cached chips are never stale."""
    inventory = ingest(task=config.task, data=config.data, source_fingerprint=source_fingerprint)
    valid, _ = validate(inventory, task=config.task, data=config.data, validation=config.validation)
    splits = split(valid, data=config.data)
    bundle, _ = fine_tune(
        splits, task=config.task, data=config.data, model=config.model, training=config.training, inference=config.inference
    )
    evaluation = evaluate(splits, bundle, task=config.task, data=config.data)
    promotion = promote(splits, bundle, evaluation, task=config.task, data=config.data, gate=config.promotion)
    publish(bundle, evaluation, promotion, task=config.task, publishing=publishing)
