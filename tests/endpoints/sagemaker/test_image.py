"""The image of a deployment: a tag becomes the digest that it names now, or is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import pytest

from hls_foundry.endpoints.aws import Aws
from hls_foundry.endpoints.sagemaker.image import pinned
from hls_foundry.endpoints.settings import AwsSettings
from hls_foundry.errors import EndpointError

REGISTRY = "123456789012.dkr.ecr.eu-central-1.amazonaws.com"
NAME = f"{REGISTRY}/hls-foundry-serve"
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"


@pytest.fixture
def ecr(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        import boto3

        client = boto3.client("ecr", region_name="eu-central-1")
        client.create_repository(repositoryName="hls-foundry-serve")
        yield client


def put(ecr: Any, tag: str, of: str) -> str:
    """The digest of another image, now under `tag`."""
    config = {"mediaType": "application/vnd.docker.container.image.v1+json", "size": 2, "digest": f"sha256:{of * 64}"}
    manifest = json.dumps({"schemaVersion": 2, "mediaType": DOCKER, "config": config, "layers": []})
    digest = f"sha256:{sha256(manifest.encode()).hexdigest()}"
    ecr.put_image(
        repositoryName="hls-foundry-serve", imageManifest=manifest, imageManifestMediaType=DOCKER, imageTag=tag, imageDigest=digest
    )
    return digest


def aws(region: str = "eu-central-1") -> Aws:
    return Aws(AwsSettings(region=region))


def test_a_tag_becomes_the_digest_that_it_names_now(ecr: Any) -> None:
    first = put(ecr, "0.1.0", "1")
    assert pinned(aws(), f"{NAME}:0.1.0") == f"{NAME}@{first}"
    second = put(ecr, "0.1.0", "2")
    assert first != second
    assert pinned(aws(), f"{NAME}:0.1.0") == f"{NAME}@{second}"


def test_a_digest_stays_and_asks_nothing() -> None:
    image = f"{NAME}@sha256:{'3' * 64}"
    assert pinned(aws(), image) == image


@pytest.mark.parametrize("image", [f"{NAME}:9.9", f"{REGISTRY}/hls-foundry-other:1"])
def test_what_ecr_does_not_have_is_refused_with_the_command_that_pushes_it(ecr: Any, image: str) -> None:
    with pytest.raises(EndpointError, match=rf"is not in ECR .*: push it with `make push REGISTRY={REGISTRY}`$") as caught:
        pinned(aws(), image)
    assert "\n" not in str(caught.value)


def test_an_image_of_another_region_is_refused(ecr: Any) -> None:
    with pytest.raises(EndpointError, match=r"is in eu-central-1, the endpoint in us-east-1: push it with `make push REGISTRY=.*us-east-1"):
        pinned(aws("us-east-1"), f"{NAME}:0.1.0")
