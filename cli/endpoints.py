"""List and delete endpoints, on this machine or on SageMaker."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from hls_foundry.endpoints.settings import AwsSettings
from hls_foundry.errors import ConfigError
from hls_foundry.home import foundry_home

if TYPE_CHECKING:
    from hls_foundry.endpoints.local import LocalEndpoints
    from hls_foundry.endpoints.sagemaker.endpoints import SageMakerEndpoints


def show(stack: str, *, rehearsed: bool = False) -> None:
    """Print one line an endpoint of ours; `rehearsed`: of the rehearsal's. Raises EndpointError (one line)."""
    listed = [endpoint.line() for endpoint in _endpoints(stack).list()]
    for line in listed:
        click.echo(line)
    if not listed:
        option = " --rehearse" if rehearsed else ""
        click.echo(
            f"no endpoints of ours: python run.py --stack aws{option} makes one"
            if stack == "aws"
            else "no endpoints: python run.py makes one"
        )


def delete(name: str, stack: str, *, objects: bool) -> None:
    """Delete endpoint `name` and what it was made of; `objects`: its copies in S3 as well. Raises EndpointError (one line)."""
    if stack == "aws":
        _on_sagemaker().delete(name, objects=objects)
    elif objects:
        raise ConfigError("--objects is for endpoints on SageMaker: add --stack aws")
    else:
        _endpoints(stack).delete(name)
    click.echo(f"deleted endpoint {name}")


def identity() -> AwsSettings:
    """Who we are to AWS: the usual chain, or the role of stacks/aws.yaml's variables on top of it."""
    return AwsSettings(role_arn=os.environ.get("HLS_AWS_ASSUME_ROLE") or None, external_id=os.environ.get("HLS_AWS_EXTERNAL_ID") or None)


def _endpoints(stack: str) -> LocalEndpoints | SageMakerEndpoints:
    if stack == "aws":
        return _on_sagemaker()
    from hls_foundry.endpoints.local import LocalEndpoints

    return LocalEndpoints(foundry_home() / "endpoints")


def _on_sagemaker() -> SageMakerEndpoints:
    from hls_foundry.endpoints.aws import Aws
    from hls_foundry.endpoints.sagemaker.endpoints import SageMakerEndpoints

    return SageMakerEndpoints(Aws(identity()))
