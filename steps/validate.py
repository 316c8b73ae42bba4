"""The Great Expectations suite over the inventory."""

import logging
from typing import Annotated

from zenml import get_step_context, step

from hls_foundry.chips.inventory import Inventory
from hls_foundry.chips.splits import Splits, split_chips
from hls_foundry.config import DataConfig, TaskConfig, ValidationConfig
from hls_foundry.errors import SplitError
from hls_foundry.home import foundry_home
from hls_foundry.validation.report import ValidationReport
from hls_foundry.validation.run import validate as validate_inventory
from steps.caching import depends_on
from steps.materializers import ResultMaterializer
from steps.names import VALID_INVENTORY, VALIDATION_REPORT

log = logging.getLogger(__name__)


@step(
    cache_policy=depends_on("chips", "validation"),
    # Named one by one: ZenML would bring them into another order in each process, and the order is part of its cache key.
    output_materializers={VALID_INVENTORY: ResultMaterializer, VALIDATION_REPORT: ResultMaterializer},
)
def validate(
    inventory: Inventory, task: TaskConfig, data: DataConfig, validation: ValidationConfig
) -> tuple[Annotated[Inventory, VALID_INVENTORY], Annotated[ValidationReport, VALIDATION_REPORT]]:
    """The Data Docs are written to the run's folder first, so that a failure can be looked at."""
    page = foundry_home() / "runs" / get_step_context().pipeline_run.name / "data_docs.html"
    report = validate_inventory(inventory, _provisional_splits(inventory, data), task, validation, data, page=page)
    log.info("validate    %d valid, %d quarantined, %d checks", len(report.inventory.table), len(report.quarantined), len(report.checks))
    return report.inventory, report


def _provisional_splits(inventory: Inventory, data: DataConfig) -> Splits | None:
    """The splits as they would be without quarantine, to be checked for leaks; None where the data are too bad to be split."""
    try:
        return split_chips(inventory, data)
    except SplitError as error:
        log.info("validate    leakage is not checked: %s", error)
        return None
