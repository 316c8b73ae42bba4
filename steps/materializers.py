"""How artifacts lie in the artifact store, and what the dashboard draws of them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

from zenml.enums import ArtifactType, VisualizationType
from zenml.io import fileio
from zenml.materializers.base_materializer import BaseMaterializer
from zenml.metadata.metadata_types import MetadataType
from zenml.utils import io_utils

from hls_foundry.chips.inventory import Inventory
from hls_foundry.chips.splits import Splits
from hls_foundry.endpoints.deployed import Deployed
from hls_foundry.endpoints.inference_test import InferenceTestReport
from hls_foundry.endpoints.publish import Published
from hls_foundry.evaluation.evaluate import EvaluationReport
from hls_foundry.models.bundle import weights_digest
from hls_foundry.validation.report import ValidationReport
from steps.artifacts import BundleFolder, PlacedModels, PromotionRecord, PublishedModel, TrainingHistory
from steps.encoding import decode, encode
from steps.lineage import facts_of
from steps.pictures import page_of


class ResultMaterializer(BaseMaterializer):
    """Results as one JSON file each, with a page where the result can draw itself."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (
        Inventory,
        Splits,
        ValidationReport,
        EvaluationReport,
        TrainingHistory,
        PromotionRecord,
        Published,
        PublishedModel,
        PlacedModels,
        Deployed,
        InferenceTestReport,
    )
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.DATA

    def load(self, data_type: type[Any]) -> Any:
        with self.artifact_store.open(self._file, "r") as file:
            return decode(json.loads(file.read()))

    def save(self, data: Any) -> None:
        with self.artifact_store.open(self._file, "w") as file:
            file.write(json.dumps(encode(data)))

    def save_visualizations(self, data: Any) -> dict[str, VisualizationType]:
        return _store_page(self, data)

    def extract_metadata(self, data: Any) -> dict[str, MetadataType]:
        return facts_of(data)

    def compute_content_hash(self, data: Any) -> str | None:
        """Equal content is an equal input to the next step, whichever run made it."""
        return hashlib.sha256(json.dumps(encode(data), sort_keys=True).encode()).hexdigest()

    @property
    def _file(self) -> str:
        return f"{self.uri}/result.json"


class BundleMaterializer(BaseMaterializer):
    """A model bundle as the folder it is."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (BundleFolder,)
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.MODEL

    def load(self, data_type: type[Any]) -> BundleFolder:
        local = Path(self.uri)
        if local.is_dir():
            return BundleFolder(local)
        with self.get_temporary_directory(delete_at_exit=False) as folder:  # it goes when the step ends
            io_utils.copy_dir(self.uri, folder)
        return BundleFolder(Path(folder))

    def save(self, data: BundleFolder) -> None:
        if Path(self.uri).is_dir():
            shutil.copytree(data.path, self.uri, dirs_exist_ok=True)
        else:
            fileio.makedirs(self.uri)
            io_utils.copy_dir(str(data.path), self.uri, overwrite=True)

    def save_visualizations(self, data: BundleFolder) -> dict[str, VisualizationType]:
        return _store_page(self, data)

    def extract_metadata(self, data: BundleFolder) -> dict[str, MetadataType]:
        return facts_of(data)

    def compute_content_hash(self, data: BundleFolder) -> str | None:
        return hashlib.sha256((weights_digest(data.path) + (data.path / "model.json").read_text(encoding="utf-8")).encode()).hexdigest()


def _store_page(materializer: BaseMaterializer, data: Any) -> dict[str, VisualizationType]:
    page = page_of(data)
    if page is None:
        return {}
    path = f"{materializer.uri}/page.html"
    with materializer.artifact_store.open(path, "w") as file:
        file.write(page)
    return {path: VisualizationType.HTML}
