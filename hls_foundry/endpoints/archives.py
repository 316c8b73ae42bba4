"""A published archive as a file on this machine, wherever it was published to."""

from __future__ import annotations

from pathlib import Path

from hls_foundry.endpoints.settings import AwsSettings
from hls_foundry.errors import EndpointError


def archive_here(uri: str, sha256: str, cache: Path, aws: AwsSettings) -> Path:
    """The file of `uri`, a path or s3://BUCKET/KEY; fetched into `cache` where it is in S3 and not there yet.

    Raises EndpointError, one line, where it is gone or no longer what was published.
    """
    if not uri.startswith("s3://"):
        if not Path(uri).is_file():
            raise EndpointError(f"the published archive {uri} is gone: run --pipeline train again, which publishes it")
        return Path(uri)
    from hls_foundry.endpoints.aws import Aws
    from hls_foundry.endpoints.s3 import S3Objects, parse_uri

    target = cache / sha256 / "model.tar.gz"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        S3Objects(Aws(aws)).download(parse_uri(uri), target, sha256=sha256)
    return target
