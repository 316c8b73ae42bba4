"""Which pictures each kind of artifact has: a page for the dashboard, and the same as sections of a run's report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hls_foundry.chips.inventory import Inventory
from hls_foundry.chips.pictures import inventory_sections, splits_sections
from hls_foundry.chips.splits import Splits
from hls_foundry.endpoints.deployed import Deployed
from hls_foundry.endpoints.endpoint_page import endpoint_sections, rehearsed
from hls_foundry.endpoints.inference_test import InferenceTestReport
from hls_foundry.endpoints.publish import Published
from hls_foundry.endpoints.test_page import inference_sections
from hls_foundry.evaluation.evaluate import EvaluationReport
from hls_foundry.evaluation.plots import sections as evaluation_sections
from hls_foundry.evaluation.promotion_page import promotion_sections
from hls_foundry.models.bundle import CARD
from hls_foundry.models.card_page import card_sections
from hls_foundry.report import Section, facts, note, page
from hls_foundry.training.curves import history_sections
from hls_foundry.validation.page import validation_sections
from hls_foundry.validation.report import ValidationReport
from steps.artifacts import BundleFolder, PlacedModels, PromotionRecord, PublishedModel, TrainingHistory

COMMAND = "python run.py"


@dataclass(frozen=True)
class Drawing:
    """How one kind of artifact is drawn."""

    title: str
    lead: str
    sections: Callable[[Any], list[Section]]


def _promotion(record: PromotionRecord) -> list[Section]:
    return promotion_sections(version=record.version, stage=record.stage, reason=record.reason, compared=record.compared)


def _published(published: Published) -> list[Section]:
    if not published.uri:
        return [Section("Published model", note("Nothing was published: the version was not promoted."))]
    known = {"archive": published.uri, "SHA-256": published.sha256}
    return [Section("Published model", facts(known)), *(card_sections(published.card) if published.card else [])]


def _published_model(model: PublishedModel) -> list[Section]:
    known = {"model": model.model, "version": model.version, "stage": model.stage, "archive": model.uri, "SHA-256": model.sha256}
    return [
        Section("Model in production", facts(known | {"classes": ", ".join(model.task.classes), "pretrained encoder": model.pretrained}))
    ]


def _placed(models: PlacedModels) -> list[Section]:
    rows = [
        {"model": one.model.model, "version": one.model.version, "lies at": one.uri, "SHA-256": one.model.sha256} for one in models.models
    ]
    return [Section(f"Model {row['model']}", facts(row)) for row in rows]


def _bundle(bundle: BundleFolder) -> list[Section]:
    card = bundle.path / CARD
    return card_sections(card.read_text(encoding="utf-8")) if card.is_file() else []


def _endpoint(endpoint: Deployed) -> list[Section]:
    if not rehearsed(endpoint):
        return endpoint_sections(endpoint, endpoint.commands(COMMAND))
    return endpoint_sections(endpoint, endpoint.commands(COMMAND, "--rehearse", shell=f'eval "$({COMMAND} rehearsal up)"'))


DRAWINGS: dict[type[Any], Drawing] = {
    Inventory: Drawing(
        "Chips", "Every chip was read once: where it lies, how bright its bands are, what its label holds.", inventory_sections
    ),
    Splits: Drawing("Splits", "Which chips teach, which choose the best step, and which judge.", splits_sections),
    ValidationReport: Drawing("Data validation", "", validation_sections),
    TrainingHistory: Drawing(
        "Fine-tuning", "Loss, validation scores and learning rate over optimiser steps.", lambda h: history_sections(h.records, h.facts)
    ),
    BundleFolder: Drawing("Model bundle", "The model card as fine-tuning wrote it, before the test chips were seen.", _bundle),
    EvaluationReport: Drawing("Evaluation", "The model on chips that it has never seen, beside the spectral index.", evaluation_sections),
    PromotionRecord: Drawing("Promotion", "Whether this version goes into production, and why.", _promotion),
    Published: Drawing("Published model", "The archive that endpoints load, and its model card.", _published),
    PublishedModel: Drawing("Model in production", "What is deployed.", _published_model),
    PlacedModels: Drawing("Archives", "Where the endpoint reads its models from.", _placed),
    Deployed: Drawing("Endpoint", "What answers, as it was when the run ended.", _endpoint),
    InferenceTestReport: Drawing(
        "Inference test",
        "Every test chip sent to the endpoint, held against the in-process prediction of the same bundle.",
        inference_sections,
    ),
}


def sections_of(artifact: Any) -> list[Section]:
    """The artifact's pictures and tables; none where its kind is not drawn."""
    drawing = _drawing(artifact)
    return drawing.sections(artifact) if drawing else []


def page_of(artifact: Any) -> str | None:
    """A self-contained page of the artifact, or None where its kind is not drawn."""
    if isinstance(artifact, ValidationReport):
        return artifact.docs_html
    drawing = _drawing(artifact)
    return page(drawing.title, drawing.lead, drawing.sections(artifact)) if drawing else None


def _drawing(artifact: Any) -> Drawing | None:
    return next((drawing for kind, drawing in DRAWINGS.items() if isinstance(artifact, kind)), None)
