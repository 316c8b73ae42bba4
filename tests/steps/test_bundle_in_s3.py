"""Artifacts survive an artifact store in S3 with their pages, and a production model is measured wherever its archive was published to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.aws.rehearsed import Account
from tests.serving.bundles import tiny_bundle

ROOT = Path(__file__).resolve().parents[2]
# ZenML has its home for as long as the process lives, so that it needs one of its own.
SCRIPT = """
import sys, uuid, json
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from cli.session import start_zenml
start_zenml()
from zenml.enums import StackComponentType
from zenml.integrations.s3.artifact_stores.s3_artifact_store import S3ArtifactStore
from zenml.integrations.s3.flavors import S3ArtifactStoreConfig
from hls_foundry.endpoints.publish import publish_bundle
from hls_foundry.endpoints.settings import PublishSettings
from hls_foundry.errors import EndpointError
from hls_foundry.models.bundle import load_bundle
from steps import promote
from cli.artifacts import made_by
from steps.artifacts import BundleFolder, TrainingHistory
from steps.materializers import BundleMaterializer, ResultMaterializer

bundle, bucket, prefix = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
now = datetime.now()
store = S3ArtifactStore(name="s3", id=uuid.uuid4(), config=S3ArtifactStoreConfig(path=f"s3://{bucket}/{prefix}"), flavor="s3",
                        type=StackComponentType.ARTIFACT_STORE, user=None, created=now, updated=now, environment={}, secrets=[])
materializer = BundleMaterializer(f"s3://{bucket}/{prefix}/bundle", artifact_store=store)
materializer.save(BundleFolder(bundle))
loaded = load_bundle(materializer.load(BundleFolder).path).sha256

curves = ResultMaterializer(f"s3://{bucket}/{prefix}/curves", artifact_store=store)
history = TrainingHistory([{"step": 1, "loss": 0.5, "learning_rate": 0.1}], {"device": "cpu"})
curves.save(history)
(page,) = curves.save_visualizations(history)
def output(name, uri):
    return SimpleNamespace(name=name, uri=uri, artifact_store_id=store.id,
                           load=lambda: ResultMaterializer(uri, artifact_store=store).load(TrainingHistory))
outputs = [output("chip inventory", f"s3://{bucket}/{prefix}/none"), output("chip splits", f"s3://not-{bucket}/none"),
           output("training curves", curves.uri)]
step = SimpleNamespace(status=SimpleNamespace(is_successful=True), outputs={"output": outputs})
made = made_by(SimpleNamespace(steps={"one": step}))
drawn = [store.open(page, "r").read().count("<img"), made.artifacts == {"training_history": history}, made.missing]

promote.measure = lambda predictor, splits, data: "measured"
published = publish_bundle(bundle, PublishSettings(bucket=bucket, prefix=prefix), task="flood", version="1")
def tried(uri, sha256="0" * 64):
    try:
        return promote._measure_production(SimpleNamespace(name="1", run_metadata={"uri": uri, "sha256": sha256}), None, None)
    except EndpointError as error:
        return str(error)
print(json.dumps([drawn, loaded == load_bundle(bundle).sha256, tried(published.uri, published.sha256), tried("/nowhere/model.tar.gz"),
                  tried(f"s3://{bucket}/{prefix}/none.tar.gz"), tried(published.uri)]))
"""


def test_bundle_and_curves_come_back_whole_and_the_production_model_is_measured(aws_account: Account, tmp_path: Path) -> None:
    environment = {**os.environ, "ZENML_CONFIG_PATH": str(tmp_path / "zenml"), "HLS_FOUNDRY_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    arguments = [str(tiny_bundle(tmp_path / "bundle")), aws_account.prepared.bucket, aws_account.prefix]
    answer = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    (pictures, read_back, missing), same, measured, gone, absent, changed = json.loads(answer.stdout.splitlines()[-1])
    assert (pictures, read_back) == (1, True)
    assert set(missing) == {"inventory", "splits"}
    assert missing["inventory"].endswith("/none: there is no such file any more")
    assert same
    assert (measured, gone, absent) == ("measured", None, None)
    assert "was changed" in changed
