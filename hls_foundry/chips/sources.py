"""Resolves where chips come from to a local folder: PATH, s3://BUCKET/PREFIX, hf://OWNER/NAME, or synthetic://[TASK]?chips=…&size=…&seed=….

What is fetched or made appears under its final name only when it is complete, so a later run finds all of it or starts over;
an interrupted S3 download goes on with the files it lacks. Names carry a digest of what they were made from.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from hls_foundry.chips.fetched import offline, recall, remember
from hls_foundry.chips.layouts import ENDINGS, split_lists
from hls_foundry.config import TaskConfig
from hls_foundry.errors import SourceError

Progress = Callable[[int, int], object]
"""Told (files or chips done, in all)."""

SYNTHETIC_DEFAULTS = {"chips": 120, "size": 256, "seed": 1}  # as configs/demo.yaml
S3_WORKERS = 16
HUB_TIMEOUT_S = 5.0  # to connect, and between two answers
HUB_PATIENCE_S = 12.0  # in all, before the hub counts as unreachable: a name may have many dead addresses


def resolve_source(source: str, task: TaskConfig, cache: Path, *, progress: Progress | None = None) -> Path:
    """The local folder with the chips of `source`; fetched or made below `cache` unless it is there already.

    An existing PATH is used where it is. s3:// takes the files of the task's layout and the split lists; it follows the AWS
    environment, AWS_ENDPOINT_URL too. hf:// keeps the download in the Hugging Face cache (HF_HUB_CACHE, HF_ENDPOINT) and unpacks
    its .tar.gz below `cache`; without a network it uses what an earlier run fetched. synthetic:// makes chips with
    the labels that it names, else the task's.
    With HLS_FOUNDRY_OFFLINE=1 nothing is asked of S3 or the hub: what was last fetched is used.

    Raises SourceError (one line) for what is missing, unreachable, refused or misspelt.
    """
    kind, rest = _kind(source)
    if kind in ("s3", "hf"):
        if offline():
            return recall(cache, source, task.layout)
        folder = _fetch_s3(rest, task, cache, progress) if kind == "s3" else _fetch_hub(rest, cache)
        remember(cache, source, task.layout, folder)
        return folder
    if kind == "synthetic":
        return _synthesise(rest, task, cache, progress)
    folder = Path(source).expanduser().absolute()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise SourceError(f"source {source} {what}: give --data (data.source) a folder of chips, s3://…, hf://… or synthetic://…")
    return folder


def source_fingerprint(source: str, task: TaskConfig) -> str:
    """SHA-256 (hex) that changes when the source does; reads no pixels.

    PATH: names, sizes and modification times; s3: names, sizes and ETags; hf: the commit; synthetic: parameters and the
    generator's own code. Raises SourceError as `resolve_source` does.
    """
    kind, rest = _kind(source)
    if kind == "s3":
        facts: Any = [rest, *_list_s3(_s3_client(), rest, task)]
    elif kind == "hf":
        facts = [rest, _hub_commit(rest)[0]]
    elif kind == "synthetic":
        name, parameters = _synthetic_parameters(rest, task)
        facts = [name, parameters, generator_version()]
    else:
        folder = resolve_source(source, task, Path())
        beside = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in split_lists(folder)]
        facts = [str(folder), *sorted(_listing(str(folder), "")), *beside]
    return hashlib.sha256(json.dumps([kind, facts]).encode()).hexdigest()


def _kind(source: str) -> tuple[str, str]:
    scheme, separator, rest = source.partition("://")
    if not separator:
        if not source.strip():
            raise SourceError("no source of chips: give --data (data.source) a folder, s3://…, hf://… or synthetic://…")
        return "path", source
    if scheme not in ("s3", "hf", "synthetic"):
        raise SourceError(f"source {source}: '{scheme}://' is not known; use a folder, s3://BUCKET/PREFIX, hf://OWNER/NAME or synthetic://")
    return scheme, rest


def _listing(folder: str, within: str) -> Iterator[tuple[str, int, int]]:
    """(name, bytes, modification time in ns) of every file below, hidden ones left out."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _listing(entry.path, f"{within}{entry.name}/")
            else:
                status = entry.stat(follow_symlinks=entry.is_file())  # a dead link is described by itself
                yield f"{within}{entry.name}", status.st_size, status.st_mtime_ns


@contextmanager
def _complete_folder(folder: Path, *, keep: bool = False) -> Iterator[Path | None]:
    """Gives a temporary folder that becomes `folder` on success, or None where `folder` is already there; one process at a time.

    On failure the temporary folder is removed, or kept with `keep` for the next attempt to go on with.
    """
    import filelock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.parent / f".{folder.name}.lock"):
            if folder.is_dir():
                yield None
                return
            temporary = folder.parent / f".{folder.name}.partial"
            if not keep:
                shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(exist_ok=True)
            try:
                yield temporary
                temporary.replace(folder)
            finally:
                if not keep:
                    shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise SourceError(f"cannot write {folder}: {error.strerror or error}; free space there or set HLS_FOUNDRY_HOME elsewhere") from None


# ---- synthetic -------------------------------------------------------------------------------------------------------------


def _synthetic_parameters(rest: str, task: TaskConfig) -> tuple[str, dict[str, int]]:
    """Task name and the chips, size and seed of what stands after synthetic://."""
    source = f"synthetic://{rest}"
    parts = urlsplit(f"//{rest}")
    name = parts.netloc or task.name
    if parts.path.strip("/") or (name != task.name and not _labels_for(name, task)):
        raise SourceError(f"{source} is not of this task: write synthetic://{task.name}?… or synthetic://?…, or choose --task")
    parameters = dict(SYNTHETIC_DEFAULTS)
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise SourceError(f"{source}: write the parameters as chips=120&size=256&seed=1") from None
    for key, value in pairs:
        if key not in parameters:
            raise SourceError(f"{source}: unknown parameter '{key}'; known are {', '.join(parameters)}")
        if not re.fullmatch(r"\d{1,9}", value):
            raise SourceError(f"{source}: {key} must be a whole number, not '{value}'")
        parameters[key] = int(value)
    return name, parameters


def _labels_for(name: str, task: TaskConfig) -> bool:
    """Whether the generator's labels `name` may stand in for those of `task`: one that it knows has labels of its own."""
    from hls_foundry.chips.synthetic.catalogue import TASKS

    return name in TASKS and task.name not in TASKS


def _synthesise(rest: str, task: TaskConfig, cache: Path, progress: Progress | None) -> Path:
    name, parameters = _synthetic_parameters(rest, task)
    folder = cache / "-".join(["synthetic", name, *(f"{key}{value}" for key, value in parameters.items()), generator_version()[:8]])
    with _complete_folder(folder) as temporary:
        if temporary is not None:
            from hls_foundry.chips.synthetic import generate

            generate(name, temporary, **parameters, progress=progress)
    return folder


@lru_cache(maxsize=1)
def generator_version() -> str:
    """SHA-256 (hex) of the generator's code: chips made by another version are other chips."""
    spec = find_spec("hls_foundry.chips.synthetic")
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    files = sorted(path for place in places for path in Path(place).glob("*.py"))
    return hashlib.sha256(b"\0".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


# ---- S3 --------------------------------------------------------------------------------------------------------------------


class S3Object(NamedTuple):
    """One object: its name below the prefix, its key, bytes and ETag."""

    name: str
    key: str
    size: int
    etag: str


def _s3_client() -> Any:
    import boto3
    from botocore.config import Config

    # Servers other than AWS seldom have a host name for every bucket.
    style = {"addressing_style": "path"} if os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") else {}
    retries = {"max_attempts": 3, "mode": "standard"}
    with _s3_errors("s3://"):
        # A session of its own: the default one keeps the credentials it first saw.
        return boto3.session.Session().client(
            "s3", config=Config(connect_timeout=5, read_timeout=60, retries=retries, max_pool_connections=S3_WORKERS, s3=style)
        )


@contextmanager
def _s3_errors(uri: str) -> Iterator[None]:
    """Turns what boto3 raises into one line about `uri`."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError, HTTPClientError, NoCredentialsError

    try:
        yield
    except NoCredentialsError:
        raise SourceError(f"{uri}: no AWS credentials; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from None
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        reasons = {
            "NoSuchBucket": "there is no such bucket: check its name, and AWS_ENDPOINT_URL where one is set",
            "404": "there is no such bucket or object: check the name",
            "AccessDenied": "access is denied: these credentials need s3:ListBucket and s3:GetObject here",
            "403": "access is denied: these credentials need s3:ListBucket and s3:GetObject here",
            "InvalidAccessKeyId": "the access key is not known there: check the credentials",
            "SignatureDoesNotMatch": "the secret key is wrong: check the credentials",
        }
        expired = "expire" in code.lower() or code in ("InvalidToken", "TokenRefreshRequired")
        reason = "the credentials have expired: log in again (aws sso login, or new session keys)" if expired else reasons.get(code)
        raise SourceError(f"{uri}: {reason or f'S3 answers {_one_line(error)}; check bucket and credentials'}") from None
    except (EndpointConnectionError, HTTPClientError) as error:
        raise SourceError(f"{uri}: S3 cannot be reached ({_one_line(error)}); check the network and AWS_ENDPOINT_URL") from None
    except (BotoCoreError, Boto3Error, ValueError) as error:
        raise SourceError(f"{uri}: {_one_line(error)}; check the AWS configuration") from None


def _list_s3(client: Any, rest: str, task: TaskConfig) -> list[S3Object]:
    """The chips of the task's layout and the lists below s3://`rest`, sorted by name."""
    bucket, _, prefix = rest.partition("/")
    if not bucket:
        raise SourceError(f"s3://{rest}: write s3://BUCKET/PREFIX")
    prefix = prefix.rstrip("/") + "/" if prefix.strip("/") else ""
    endings = tuple(ending.lower() for ending in (*ENDINGS[task.layout], ".csv", ".txt"))
    found = []
    count = 0
    with _s3_errors(f"s3://{rest}"):
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", []):
                count += 1
                name = item["Key"][len(prefix) :]
                if not name.lower().endswith(endings):
                    continue
                if name.startswith("/") or any(part in ("", ".", "..") for part in name.split("/")):
                    raise SourceError(f"s3://{rest}: the key {item['Key']!r} is not a file name; rename it or choose another prefix")
                found.append(S3Object(name, item["Key"], item["Size"], item.get("ETag", "").strip('"')))
    if not any(item.name.lower().endswith(endings[:2]) for item in found):
        raise SourceError(f"s3://{rest} holds {count} objects but no chip of layout {task.layout}: check bucket and prefix")
    return sorted(found)


def _fetch_s3(rest: str, task: TaskConfig, cache: Path, progress: Progress | None) -> Path:
    client = _s3_client()
    objects = _list_s3(client, rest, task)
    digest = hashlib.sha256(json.dumps(objects).encode()).hexdigest()
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", rest).strip("-")[:80]
    folder = cache / f"s3-{name}-{digest[:12]}"
    with _complete_folder(folder, keep=True) as temporary:
        if temporary is not None:
            _download_s3(client, rest, objects, temporary, progress)
    return folder


def _download_s3(client: Any, rest: str, objects: list[S3Object], folder: Path, progress: Progress | None) -> None:
    """All objects into `folder`, in parallel, leaving out those an earlier attempt completed."""
    from boto3.s3.transfer import TransferConfig

    bucket = rest.partition("/")[0]
    whole = TransferConfig(use_threads=False)  # the parallelism is over files

    def download(item: S3Object) -> None:
        target = folder / item.name
        if target.is_file():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        with _s3_errors(f"s3://{bucket}/{item.key}"):
            client.download_file(bucket, item.key, str(partial), Config=whole)
        if partial.stat().st_size != item.size:
            raise SourceError(f"s3://{bucket}/{item.key} changed while it was downloaded: run again")
        partial.replace(target)

    pool = ThreadPoolExecutor(S3_WORKERS, thread_name_prefix="s3")
    try:
        for done, future in enumerate(as_completed([pool.submit(download, item) for item in objects]), 1):
            future.result()
            if progress:
                progress(done, len(objects))
    finally:
        pool.shutdown(cancel_futures=True)


# ---- Hugging Face hub ------------------------------------------------------------------------------------------------------


def _hub_commit(repository: str) -> tuple[str, bool]:
    """The commit of the data set's main branch, and whether the hub said so; else that of the last download."""
    from huggingface_hub import HfApi, errors

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise SourceError(f"hf://{repository}: write hf://OWNER/NAME")
    answer: list[Any] = []

    def ask() -> None:
        try:
            api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
            answer.append(api.dataset_info(repository, timeout=HUB_TIMEOUT_S).sha)
        except Exception as error:  # whatever the transport raises; judged below
            answer.append(error)

    # In a thread of its own, as the timeout counts for each address the name has and for each retry.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_PATIENCE_S)
    found = answer[0] if answer else TimeoutError(f"no answer within {HUB_PATIENCE_S:.0f} s")
    if isinstance(found, str):
        return found, True
    if isinstance(found, errors.GatedRepoError):
        raise SourceError(f"hf://{repository} asks for its terms to be accepted: do so on its page, then set HF_TOKEN")
    if isinstance(found, errors.RepositoryNotFoundError):
        raise SourceError(f"hf://{repository} is not on the hub or is private: check OWNER/NAME, or set HF_TOKEN")
    try:
        return Path(_snapshot(repository, local_files_only=True)).name, False
    except (OSError, ValueError, errors.HfHubHTTPError):
        raise SourceError(
            f"hf://{repository}: the Hugging Face hub cannot be reached ({_one_line(found)}); check the network or HF_ENDPOINT, "
            "or download the data set elsewhere and give --data its folder"
        ) from None


def _snapshot(repository: str, *, local_files_only: bool) -> str:
    from huggingface_hub import snapshot_download

    return str(
        snapshot_download(
            repository,
            repo_type="dataset",
            cache_dir=os.environ.get("HF_HUB_CACHE"),
            endpoint=os.environ.get("HF_ENDPOINT"),
            local_files_only=local_files_only,
        )
    )


def _fetch_hub(repository: str, cache: Path) -> Path:
    _, online = _hub_commit(repository)
    try:
        snapshot = Path(_snapshot(repository, local_files_only=not online))
    except Exception as error:  # the hub's client raises errors of several libraries
        # The next attempt goes on where this one stopped.
        raise SourceError(f"hf://{repository} could not be downloaded ({_one_line(error)}): run again") from None
    archives = sorted(path for path in snapshot.rglob("*") if path.name.endswith((".tar.gz", ".tgz", ".tar")))
    if not archives:
        return snapshot
    folder = cache / f"hf-{repository.replace('/', '-')}-{snapshot.name[:12]}"
    with _complete_folder(folder) as temporary:
        if temporary is not None:
            for archive in archives:
                unpack(archive, temporary, f"hf://{repository}/{archive.relative_to(snapshot)}")
    return folder


def unpack(archive: Path, folder: Path, where: str) -> None:
    """Unpack a tar archive into `folder`. Raises SourceError where it is damaged or would write outside (PEP 706's data filter)."""
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    except tarfile.FilterError as error:
        raise SourceError(f"{where} is not safe to unpack ({_one_line(error)}): use another source") from None
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise SourceError(f"{where} is not a sound tar archive ({_one_line(error)}): remove {archive} and run again") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
