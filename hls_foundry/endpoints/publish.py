"""Publish a bundle: model.tar.gz with its SHA-256 in a folder or a bucket that deployments read from."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hls_foundry.endpoints.aws import Aws, NoAnswer
from hls_foundry.endpoints.s3 import Attributes, Location, S3Objects
from hls_foundry.endpoints.settings import TAG, PublishSettings
from hls_foundry.errors import BundleError, EndpointError
from hls_foundry.home import resolve_path
from hls_foundry.models.bundle import LIMITS, MANIFEST, pack_bundle
from hls_foundry.progress import Progress

log = logging.getLogger(__name__)

ARCHIVE = "model.tar.gz"
LINEAGE = ("training_digest", "data_fingerprint", "code")
"""What of the bundle's lineage goes beside the object: ids. Sources and paths may tell more than an id, and stay in the bundle."""


@dataclass(frozen=True)
class Published:
    """Where a model version's archive lies, the SHA-256 (hex) of its bytes, and the model card in it (Markdown)."""

    uri: str
    sha256: str
    card: str = ""


def publish_bundle(bundle: Path, settings: PublishSettings, *, task: str, version: str, progress: Progress | None = None) -> Published:
    """`bundle`, its folder or its model.tar.gz, as FOLDER/TASK/VERSION/model.tar.gz or s3://BUCKET/PREFIX/TASK/VERSION-DIGEST/model.tar.gz.

    A folder is packed: the same bundle gives the same bytes, so publishing again changes and sends nothing. An archive goes as it is.
    `progress` gets bytes, to S3 only. Raises BundleError or EndpointError, one line, when the place cannot be written; an archive
    that was there stays whole.
    """
    if settings.folder is not None:
        return _to_folder(bundle, resolve_path(settings.folder), task, version)
    return _to_s3(bundle, settings, task, version, progress)


def _to_folder(bundle: Path, folder: Path, task: str, version: str) -> Published:
    """With model.tar.gz.sha256 beside the archive."""
    target = folder / task / version
    try:
        target.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".model-", suffix=".tar.gz", dir=target)
        os.close(descriptor)
        partial = Path(name)
        try:
            if bundle.is_file():
                shutil.copyfile(bundle, partial)
            digest = _sha256(partial) if bundle.is_file() else pack_bundle(bundle, partial)
            partial.chmod(0o644)
            partial.replace(target / ARCHIVE)
        finally:
            partial.unlink(missing_ok=True)
        note = target / f".{ARCHIVE}.sha256.partial"
        note.write_text(f"{digest}  {ARCHIVE}\n", encoding="utf-8")
        note.replace(target / f"{ARCHIVE}.sha256")
    except OSError as error:
        raise BundleError(f"cannot publish to {target}: {error.strerror or error}; free space or choose another publish.folder") from None
    return Published(uri=str(target / ARCHIVE), sha256=digest)


def _to_s3(bundle: Path, settings: PublishSettings, task: str, version: str, progress: Progress | None) -> Published:
    objects, bucket = S3Objects(Aws(settings.aws)), str(settings.bucket)
    try:
        objects.check_bucket(bucket)  # before the archive is packed, which takes a while
        with _packed(bundle) as (archive, digest):
            # The digest in the key: another model of the same version's name never takes the place of one that an endpoint serves.
            parts = [part for part in settings.prefix.split("/") if part]
            to = Location(bucket, "/".join([*parts, task, f"{version}-{digest[:12]}", ARCHIVE]))
            facts = {"task": task, "model-version": version, **_lineage(archive)}
            attributes = Attributes(
                metadata={key: _plain(value) for key, value in facts.items()},
                tags={TAG: _plain(task), f"{TAG}-version": _plain(version)},
                kms_key=settings.kms_key,
            )
            sent = objects.upload(archive, to, sha256=digest, attributes=attributes, progress=progress)
            log.info(
                "publish     %s", f"{archive.stat().st_size / 1e6:.1f} MB sent and read back" if sent else "nothing to send: S3 has it"
            )
    except NoAnswer as error:
        raise NoAnswer(
            f"cannot publish: {error}; where compute nodes have no network, let the stack publish to a folder (publish.folder): "
            "python run.py --stack aws, on the login node, puts it in S3"
        ) from None
    except EndpointError as error:
        raise EndpointError(f"cannot publish: {error}") from None
    return Published(uri=to.uri, sha256=digest)


@contextmanager
def _packed(bundle: Path) -> Iterator[tuple[Path, str]]:
    """The bundle's archive and its SHA-256 (hex). Raises BundleError."""
    if bundle.is_file():
        yield bundle, _sha256(bundle)
        return
    with tempfile.TemporaryDirectory(prefix="hls-publish-") as folder:
        archive = Path(folder) / ARCHIVE
        yield archive, pack_bundle(bundle, archive)


def _lineage(archive: Path) -> dict[str, str]:
    """The ids of the manifest in the archive, which lies before the weights. Raises BundleError."""
    try:
        with tarfile.open(archive, mode="r|gz") as tar:
            for member in tar:
                if Path(member.name) == Path(MANIFEST) and member.size <= LIMITS[MANIFEST] and (file := tar.extractfile(member)):
                    lineage = json.loads(file.read()).get("lineage", {})
                    return {key.replace("_", "-"): str(lineage[key]) for key in LINEAGE if lineage.get(key)}
    except (OSError, tarfile.TarError, zlib.error, EOFError, ValueError, AttributeError) as error:
        raise BundleError(f"{archive} is no model bundle ({' '.join(str(error).split())}): make it again") from None
    raise BundleError(f"{archive} holds no {MANIFEST}: it is not a model bundle")


def _plain(text: str) -> str:
    """What both the metadata (ASCII) and the tags of an object take."""
    return re.sub(r"[^A-Za-z0-9 +=._:/@-]", "_", text)[:256]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
