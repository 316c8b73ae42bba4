"""The chapter on AWS as a user rehearses it: a model trained here, deployed on the stand-ins of S3 and SageMaker by run.py."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rasterio

from tests.e2e.machines import SMALL, Machine

AWS = ("--stack", "aws", "--rehearse", "--task", "flood", *SMALL[:2])
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


@pytest.fixture(scope="module")
def here(machine: Machine, trained: dict[str, Any]) -> Path:
    """The mask of a chip as this process predicts it."""
    mask = machine.folder / "here.tif"
    machine.run("predict", str(_chip(machine)), "--bundle", trained["model"]["uri"], "--out", str(mask))
    return mask


def test_predict_asks_the_endpoint_and_gets_the_mask_of_this_process(machine: Machine, deployed: dict[str, Any], here: Path) -> None:
    there = machine.folder / "there.tif"
    machine.run("predict", str(_chip(machine)), "--endpoint", "hls-flood", "--rehearse", "--out", str(there))
    with rasterio.open(here) as a, rasterio.open(there) as b:
        assert (a.read(1) == b.read(1)).mean() >= 0.9999


@pytest.fixture(scope="module")
def printed(deployed: dict[str, Any]) -> dict[str, str]:
    """The commands at the end of the summary, by their word."""
    told = deployed["stdout"].partition("hls-flood answers at")[2].splitlines()[1:]
    return {word.strip(): command.strip() for line in told for word, colon, command in [line.partition(": ")] if colon}


@pytest.mark.parametrize("word", ["call", "AWS CLI", "Python", "curl"])
def test_what_is_printed_to_call_the_endpoint_calls_it(machine: Machine, printed: dict[str, str], word: str) -> None:
    if word == "AWS CLI" and (shutil.which("aws") is None or subprocess.run(["aws", "--version"], capture_output=True).returncode != 0):
        pytest.skip("no AWS CLI, which nothing else needs; that its options are the operation's is tested without it")
    chip, polygons = _chip(machine), machine.folder / f"{word}.geojson"
    command = printed[word].replace("SCENE.tif", str(chip)).replace("polygons.geojson", shlex.quote(str(polygons)))
    command = f"python -c {shlex.quote(command)}" if word == "Python" else command
    said = machine.shell(command if word == "call" else f"{printed['shell']} && {command}")
    document = json.loads(polygons.read_text() if polygons.exists() else said)
    assert document["type"] == "FeatureCollection"


@pytest.mark.parametrize("kind", ["serverless", "async", "multi_model"])
def test_a_variable_chooses_another_kind_which_serves_passes_and_goes(
    machine: Machine, trained: dict[str, Any], deployed: dict[str, Any], here: Path, kind: str
) -> None:
    tasks = ["burn_scars", "flood"] if kind == "multi_model" else ["flood"]
    if kind == "multi_model":
        machine.summary("--pipeline", "train", "--task", "burn_scars", *SMALL)
    summary = machine.summary(*AWS, HLS_AWS_KIND=kind)
    name, test = summary["endpoint"]["name"], summary["inference_test"]
    assert summary["endpoint"]["kind"] == kind
    assert name == {"serverless": "hls-flood-serverless", "async": "hls-flood-async", "multi_model": "hls-all-tasks"}[kind]
    assert (summary["model"]["sha256"], test["errors"]) == (trained["model"]["sha256"], 0)
    assert test["agreement"] >= 0.9999
    for task in tasks:
        there = machine.folder / f"{kind}-{task}.tif"
        machine.run("predict", str(_chip(machine)), "--endpoint", name, "--task", task, "--rehearse", "--out", str(there))
        with rasterio.open(here) as a, rasterio.open(there) as b:
            assert ((a.read(1) == b.read(1)).mean() >= 0.9999) == (task == "flood")  # the other task's model is another
    machine.run("endpoints", "--stack", "aws", "--rehearse", "--delete", name, "--objects")
    left = _left(machine.folder / "foundry")
    assert left["endpoints"] == ["hls-flood"]
    assert [len(names) for names in left.values()] == [1, 1, 1]


def test_a_second_run_sends_and_changes_nothing(machine: Machine, deployed: dict[str, Any]) -> None:
    answer = machine.run(*AWS)
    assert "nothing to send" in answer.stderr
    assert "Updating" not in answer.stderr


def test_listing_shows_it_and_the_printed_deletion_leaves_nothing_behind(
    machine: Machine, deployed: dict[str, Any], printed: dict[str, str]
) -> None:
    listed = machine.run("endpoints", "--stack", "aws", "--rehearse").stdout
    assert "hls-flood" in listed
    assert f"version {deployed['endpoint']['model_version']}" in listed
    machine.shell(printed["delete"])
    assert (
        "no endpoints of ours: python run.py --stack aws --rehearse makes one"
        in machine.run("endpoints", "--stack", "aws", "--rehearse").stdout
    )
    assert all(not names for names in _left(machine.folder / "foundry").values())


def _chip(machine: Machine) -> Path:
    """One of the chips that it was trained on."""
    return next((machine.folder / "foundry" / "data").rglob("S2Hand/*.tif"))


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
