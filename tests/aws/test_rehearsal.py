"""The rehearsal of AWS behaves as SageMaker does, over real HTTP and with the project's real serving application."""

from __future__ import annotations

from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from hls_foundry.models.bundle import pack_bundle
from tests.aws.rehearsed import Account
from tests.serving.bundles import tiny_bundle
from tests.serving.scenes import scene_tiff


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models' model.tar.gz."""
    folder = tmp_path_factory.mktemp("archives")
    made = []
    for seed in (1, 2):
        pack_bundle(tiny_bundle(folder / f"bundle{seed}", seed=seed), folder / f"{seed}.tar.gz")
        made.append(folder / f"{seed}.tar.gz")
    return made[0], made[1]


def test_an_endpoint_comes_up_answers_and_goes(aws_account: Account, archives: tuple[Path, Path]) -> None:
    model = aws_account.model("one", aws_account.put("one/model.tar.gz", archives[0]))
    name = aws_account.create("flood", aws_account.config("one", model))
    assert aws_account.sm.describe_endpoint(EndpointName=name)["EndpointStatus"] == "Creating"
    with pytest.raises(ClientError, match="in-progress"):
        aws_account.sm.delete_endpoint(EndpointName=name)
    aws_account.wait(name)
    reply = aws_account.runtime.invoke_endpoint(EndpointName=name, Body=scene_tiff(64), ContentType="image/tiff", Accept="image/tiff")
    assert reply["ContentType"] == "image/tiff"
    assert reply["InvokedProductionVariant"] == "AllTraffic"
    assert reply["CustomAttributes"].startswith("model_sha256=")
    assert reply["Body"].read(4) in (b"II*\0", b"MM\0*")
    assert any("model_loaded" in line for line in aws_account.log_lines(name))
    aws_account.sm.delete_endpoint(EndpointName=name)
    assert aws_account.gone(name)
