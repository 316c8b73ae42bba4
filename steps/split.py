"""Chips into training, validation and test."""

import logging
from typing import Annotated

from zenml import step

from hls_foundry.chips.inventory import Inventory
from hls_foundry.chips.splits import Splits, split_chips
from hls_foundry.config import DataConfig
from steps.caching import depends_on
from steps.materializers import ResultMaterializer
from steps.names import SPLITS

log = logging.getLogger(__name__)


@step(cache_policy=depends_on("chips"), output_materializers=ResultMaterializer)
def split(inventory: Inventory, data: DataConfig) -> Annotated[Splits, SPLITS]:
    splits = split_chips(inventory, data)
    counts = splits.table["split"].value_counts()
    log.info("split       %s", ", ".join(f"{counts.get(name, 0)} {name}" for name in ("train", "validation", "test")))
    return splits
