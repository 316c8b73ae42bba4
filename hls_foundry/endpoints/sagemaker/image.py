"""The image of a deployment as the one that its tag names now: by its digest, so that it is known, and stays what was tested."""

from __future__ import annotations

import re

from hls_foundry.endpoints.aws import Aws, aws_errors, error_code
from hls_foundry.errors import EndpointError

_ECR = re.compile(r"((\d{12})\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/([^:@]+))(?::([^@]+)|@sha256:[0-9a-f]{64})")
PUSH = "push it with `make push REGISTRY={registry}`"


def pinned(aws: Aws, image: str) -> str:
    """`image` with its digest in place of a tag; with a digest it is what it was.

    Raises EndpointError (one line): an image of another region, one that ECR does not have, and one whose tag may not be asked for.
    """
    from botocore.exceptions import ClientError

    match = _ECR.fullmatch(image)
    if match is None:
        raise EndpointError(f"image {image} is not in ECR, and SageMaker takes no other: push it there (docs/containers.md)")
    name, account, region, repository, tag = match.groups()
    if tag is None:
        return image
    push = PUSH.format(registry=name.removesuffix(f"/{repository}").replace(region, aws.region))
    if region != aws.region:
        raise EndpointError(f"image {image} is in {region}, the endpoint in {aws.region}: {push}")
    with aws_errors(f"image {image}"):
        try:
            found = aws.client("ecr").describe_images(registryId=account, repositoryName=repository, imageIds=[{"imageTag": tag}])
        except ClientError as error:
            if error_code(error) not in ("RepositoryNotFoundException", "ImageNotFoundException"):
                raise
            raise EndpointError(f"image {image} is not in ECR ({error_code(error)}): {push}") from None
    return f"{name}@{found['imageDetails'][0]['imageDigest']}"
