"""What an account has before its first deployment, as the rehearsal makes it: a bucket, a role that SageMaker may take, an image in ECR."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from stacks.aws.rehearsal.credentials import ACCOUNT, KEY_ID, REGION, SECRET

BUCKET, ROLE, REPOSITORY, TAG = "hls-foundry-rehearsal", "hls-foundry-sagemaker", "hls-foundry-serve", "latest"
IMAGE = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/{REPOSITORY}:{TAG}"
TRUST = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}],
}
_DOCKER = "application/vnd.docker.distribution.manifest"  # SageMaker refuses images of OCI's types
_EMPTY = {"mediaType": f"{_DOCKER}.v2+json", "digest": f"sha256:{'0' * 64}", "size": 2}
INDEX = {
    "schemaVersion": 2,
    "mediaType": f"{_DOCKER}.list.v2+json",
    "manifests": [{**_EMPTY, "platform": {"architecture": "amd64", "os": "linux"}}],
}


@dataclass(frozen=True)
class Prepared:
    """Names of what there is."""

    bucket: str
    role: str  # ARN
    image: str  # URI in ECR


def prepare(url: str) -> Prepared:
    """Make it in the control plane at `url`, where it is not there yet."""
    import boto3

    session = boto3.Session(aws_access_key_id=KEY_ID, aws_secret_access_key=SECRET, region_name=REGION)

    def client(service: str) -> Any:
        return session.client(service, endpoint_url=url)

    s3, iam, ecr = client("s3"), client("iam"), client("ecr")
    with suppress(s3.exceptions.BucketAlreadyOwnedByYou):
        s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    with suppress(iam.exceptions.EntityAlreadyExistsException):
        iam.create_role(RoleName=ROLE, AssumeRolePolicyDocument=json.dumps(TRUST))
    with suppress(ecr.exceptions.RepositoryAlreadyExistsException):
        ecr.create_repository(repositoryName=REPOSITORY)
    with suppress(ecr.exceptions.ImageAlreadyExistsException):
        ecr.put_image(repositoryName=REPOSITORY, imageManifest=json.dumps(INDEX), imageTag=TAG)
    return Prepared(BUCKET, f"arn:aws:iam::{ACCOUNT}:role/{ROLE}", IMAGE)
