"""Chips from their source into an inventory."""

import logging
from typing import Annotated

from zenml import step

from hls_foundry.chips.inventory import Inventory, build_inventory
from hls_foundry.chips.sources import resolve_source
from hls_foundry.config import DataConfig, TaskConfig
from hls_foundry.home import foundry_home
from hls_foundry.progress import progress_bar
from steps.caching import depends_on
from steps.materializers import ResultMaterializer
from steps.names import INVENTORY

log = logging.getLogger(__name__)


@step(cache_policy=depends_on("chips"), output_materializers=ResultMaterializer)
def ingest(task: TaskConfig, data: DataConfig, source_fingerprint: str) -> Annotated[Inventory, INVENTORY]:
    """`source_fingerprint` is not used here: it makes ZenML run the step again when the source's files change."""
    root = resolve_source(data.source, task, foundry_home() / "data")
    with progress_bar("inventory") as progress:
        inventory = build_inventory(root, task, data, progress=progress)
    log.info("ingest      %d chips, fingerprint %s", len(inventory.table), inventory.fingerprint[:12])
    return inventory
