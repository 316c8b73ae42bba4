"""Publish a bundle: model.tar.gz with its SHA-256 in a folder that deployments read from."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hls_foundry.errors import BundleError
from hls_foundry.models.bundle import pack_bundle


@dataclass(frozen=True)
class Published:
    """Where a model version's archive lies, and the SHA-256 (hex) of its bytes."""

    uri: str
    sha256: str


def publish_bundle(bundle: Path, folder: Path, *, task: str, version: str) -> Published:
    """Pack `bundle` into `folder`/TASK/VERSION/model.tar.gz, with model.tar.gz.sha256 beside it.

    The same bundle gives the same bytes, so publishing again changes nothing. Raises BundleError, one line,
    when the folder cannot be written; an archive that was there stays whole.
    """
    target = folder / task / version
    try:
        target.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".model-", suffix=".tar.gz", dir=target)
        os.close(descriptor)
        partial = Path(name)
        try:
            digest = pack_bundle(bundle, partial)
            partial.chmod(0o644)
            partial.replace(target / "model.tar.gz")
        finally:
            partial.unlink(missing_ok=True)
        note = target / ".model.tar.gz.sha256.partial"
        note.write_text(f"{digest}  model.tar.gz\n", encoding="utf-8")
        note.replace(target / "model.tar.gz.sha256")
    except OSError as error:
        raise BundleError(f"cannot publish to {target}: {error.strerror or error}; free space or choose another publish.folder") from None
    return Published(uri=str(target / "model.tar.gz"), sha256=digest)
