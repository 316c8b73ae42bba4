"""The chapter on AWS as a user rehearses it: a model trained here, deployed on the stand-ins of S3 and SageMaker by run.py."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rasterio

from tests.e2e.machines import SMALL, Machine

AWS = ("--stack", "aws", "--rehearse", "--task", "flood")
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    made = Machine(tmp_path_factory.mktemp("machine"))
    yield made
    subprocess.run(made.command("rehearsal", "down"), env=made.environment, capture_output=True)


@pytest.fixture(scope="module")
def trained(machine: Machine) -> dict[str, Any]:
    return machine.summary("--pipeline", "train", "--task", "flood", *SMALL)


@pytest.fixture(scope="module")
def deployed(machine: Machine, trained: dict[str, Any]) -> dict[str, Any]:
    started = time.monotonic()
    summary = machine.summary(*AWS)
    return {**summary, "seconds": time.monotonic() - started}


def test_the_version_that_was_trained_here_is_what_sagemaker_serves(trained: dict[str, Any], deployed: dict[str, Any]) -> None:
    endpoint, test = deployed["endpoint"], deployed["inference_test"]
    assert (endpoint["target"], endpoint["kind"], endpoint["name"]) == ("sagemaker", "realtime", "hls-flood")
    assert (endpoint["model_version"], deployed["model"]["sha256"]) == (trained["model"]["version"], trained["model"]["sha256"])
    assert test["errors"] == 0
    assert test["agreement"] >= 0.9999


def test_the_deployment_is_quick(deployed: dict[str, Any]) -> None:
    assert deployed["seconds"] < 90


def test_predict_asks_the_endpoint_and_gets_the_mask_of_this_process(
    machine: Machine, trained: dict[str, Any], deployed: dict[str, Any]
) -> None:
    chip = next((machine.folder / "foundry" / "data").rglob("S2Hand/*.tif"))
    here, there = machine.folder / "here.tif", machine.folder / "there.tif"
    machine.run("predict", str(chip), "--bundle", trained["model"]["uri"], "--out", str(here))
    machine.run("predict", str(chip), "--endpoint", "hls-flood", "--rehearse", "--out", str(there))
    with rasterio.open(here) as a, rasterio.open(there) as b:
        assert (a.read(1) == b.read(1)).mean() >= 0.9999


def test_a_second_run_sends_and_changes_nothing(machine: Machine, deployed: dict[str, Any]) -> None:
    answer = machine.run(*AWS)
    assert "nothing to send" in answer.stderr
    assert "Updating" not in answer.stderr


def test_listing_shows_it_and_deleting_leaves_nothing_behind(machine: Machine, deployed: dict[str, Any]) -> None:
    listed = machine.run("endpoints", "--stack", "aws", "--rehearse").stdout
    assert "hls-flood" in listed
    assert f"version {deployed['endpoint']['model_version']}" in listed
    machine.run("endpoints", "--stack", "aws", "--rehearse", "--delete", "hls-flood", "--objects")
    assert "no endpoints of ours" in machine.run("endpoints", "--stack", "aws", "--rehearse").stdout
    assert all(not names for names in _left(machine.folder / "foundry").values())


def _left(home: Path) -> dict[str, list[str]]:
    """What SageMaker still has, by kind."""
    import boto3

    from stacks.aws.rehearsal import Rehearsal

    environment = Rehearsal(home).environment
    client = boto3.client(
        "sagemaker",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name=environment["AWS_REGION"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
    )
    return {
        "endpoints": [found["EndpointName"] for found in client.list_endpoints()["Endpoints"]],
        "configurations": [found["EndpointConfigName"] for found in client.list_endpoint_configs()["EndpointConfigs"]],
        "models": [found["ModelName"] for found in client.list_models()["Models"]],
    }
