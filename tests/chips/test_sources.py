"""The sources: folders, S3 (moto's server), the hub (a local stand-in) and synthetic chips become a local folder, whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import tarfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from hls_foundry.chips import sources
from hls_foundry.chips.layouts import find_chips
from hls_foundry.chips.sources import resolve_source, source_fingerprint, unpack
from hls_foundry.config import TaskConfig
from hls_foundry.errors import SourceError


def refused(source: str, task: TaskConfig, cache: Path, *words: str) -> None:
    attempts = [lambda: resolve_source(source, task, cache), lambda: source_fingerprint(source, task)]
    for attempt in attempts[:1] if source.startswith("s3://") else attempts:  # a new client takes boto3 half a second
        with pytest.raises(SourceError) as error:
            attempt()
        assert "\n" not in str(error.value)
        for word in words:
            assert word in str(error.value), str(error.value)


# ---- folders ----


def test_a_folder_is_used_where_it_is(tmp_path: Path, burn_task: TaskConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "chips").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_source("chips", burn_task, tmp_path / "cache") == tmp_path / "chips"
    assert not (tmp_path / "cache").exists()


def test_what_is_no_source_is_refused(tmp_path: Path, burn_task: TaskConfig) -> None:
    refused(str(tmp_path / "none"), burn_task, tmp_path, "does not exist")
    (tmp_path / "file").write_text("")
    refused(str(tmp_path / "file"), burn_task, tmp_path, "is a file, not a folder")
    refused("gs://bucket/chips", burn_task, tmp_path, "'gs://' is not known")
    refused("", burn_task, tmp_path, "no source of chips")


def test_the_fingerprint_of_a_folder_follows_its_files(tmp_path: Path, burn_task: TaskConfig) -> None:
    root = tmp_path / "up" / "chips"
    (root / "training").mkdir(parents=True)
    (root / "training/a_merged.tif").write_bytes(b"1234")

    seen = [source_fingerprint(str(root), burn_task)]
    assert source_fingerprint(str(root), burn_task) == seen[0]
    (root / "training/a_merged.tif").write_bytes(b"12345")
    seen.append(source_fingerprint(str(root), burn_task))
    os.utime(root / "training/a_merged.tif", ns=(1, 1))
    seen.append(source_fingerprint(str(root), burn_task))
    (root / "training/b_merged.tif").symlink_to("nowhere")
    seen.append(source_fingerprint(str(root), burn_task))
    (tmp_path / "up" / "splits").mkdir()
    (tmp_path / "up" / "splits" / "train.txt").write_text("a\n")
    seen.append(source_fingerprint(str(root), burn_task))
    assert len(set(seen)) == len(seen)


def test_the_fingerprint_of_two_thousand_files_takes_a_tenth_of_a_second(tmp_path: Path, burn_task: TaskConfig) -> None:
    for index in range(2_000):
        (tmp_path / f"{index}_merged.tif").touch()
    begin = time.process_time()
    source_fingerprint(str(tmp_path), burn_task)
    assert time.process_time() - begin < 0.1


# ---- synthetic ----


def test_synthetic_chips_are_made_once(tmp_path: Path, burn_task: TaskConfig) -> None:
    seen: list[tuple[int, int]] = []
    source = "synthetic://?chips=6&size=64&seed=3"
    folder = resolve_source(source, burn_task, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert len(find_chips(folder, "hls_burn_scars")) == 6
    assert seen[-1] == (6, 6)
    seen.clear()
    again = resolve_source("synthetic://burn_scars?seed=3&size=64&chips=6", burn_task, tmp_path, progress=lambda *at: seen.append(at))
    assert again == folder
    assert not seen
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [folder]


def test_synthetic_parameters_decide_the_fingerprint(burn_task: TaskConfig, flood_task: TaskConfig) -> None:
    same = {source_fingerprint(f"synthetic://{text}", burn_task) for text in ("", "burn_scars", "?seed=1", "burn_scars?size=256&chips=120")}
    assert len(same) == 1
    other = {source_fingerprint(f"synthetic://{text}", burn_task) for text in ("?seed=2", "?size=128", "?chips=60")}
    assert len(same | other | {source_fingerprint("synthetic://", flood_task)}) == 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("flood", "is not of this task"),
        ("forest", "is not of this task"),
        ("burn_scars/x", "is not of this task"),
        ("?chip=3", "unknown parameter 'chip'; known are chips, size, seed"),
        ("?chips=many", "chips must be a whole number, not 'many'"),
        ("?chips=-3", "not '-3'"),
        ("?chips", "write the parameters as chips=120"),
        ("?chips=", "chips must be a whole number"),
    ],
)
def test_bad_synthetic_parameters_are_refused(tmp_path: Path, burn_task: TaskConfig, text: str, words: str) -> None:
    refused(f"synthetic://{text}", burn_task, tmp_path, words)
    assert not list(tmp_path.iterdir())


def test_a_failed_generation_leaves_nothing(tmp_path: Path, burn_task: TaskConfig) -> None:
    with pytest.raises(SourceError):
        resolve_source("synthetic://?chips=0", burn_task, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


# ---- S3 ----


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A client of moto's S3 with an empty bucket `chips`, and the environment that leads boto3 to it."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    settings = {"ENDPOINT_URL": s3_server, "ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}
    settings |= {"CONFIG_FILE": str(tmp_path / "none"), "SHARED_CREDENTIALS_FILE": str(tmp_path / "none"), "EC2_METADATA_DISABLED": "true"}
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    client = boto3.session.Session().client("s3")
    client.create_bucket(Bucket="chips")
    yield client
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="chips"):
        for item in page.get("Contents", []):
            client.delete_object(Bucket="chips", Key=item["Key"])
    client.delete_bucket(Bucket="chips")


def put(client: Any, *keys: str) -> None:
    for key in keys:
        client.put_object(Bucket="chips", Key=key, Body=key.encode())


def test_s3_brings_the_chips_and_lists_of_the_task(tmp_path: Path, s3: Any, flood_task: TaskConfig) -> None:
    names = ("S2Hand/Ghana_1_S2Hand.tif", "LabelHand/Ghana_1_LabelHand.tif", "splits/flood_train_data.csv")
    put(s3, *(f"v1/{name}" for name in names), "v1/S1Hand/Ghana_1_S1Hand.tif", "v1/", "v10/S2Hand/Spain_2_S2Hand.tif")
    seen: list[tuple[int, int]] = []
    folder = resolve_source("s3://chips/v1", flood_task, tmp_path, progress=lambda done, total: seen.append((done, total)))
    files = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert files == {name: f"v1/{name}" for name in names}
    assert seen == [(1, 3), (2, 3), (3, 3)]

    seen.clear()
    assert resolve_source("s3://chips/v1/", flood_task, tmp_path, progress=lambda *at: seen.append(at)) == folder
    assert not seen, "nothing changed, nothing is fetched"
    before = source_fingerprint("s3://chips/v1", flood_task)
    s3.put_object(Bucket="chips", Key="v1/S2Hand/Ghana_1_S2Hand.tif", Body=b"new")
    assert source_fingerprint("s3://chips/v1", flood_task) != before
    assert (resolve_source("s3://chips/v1", flood_task, tmp_path) / "S2Hand/Ghana_1_S2Hand.tif").read_bytes() == b"new"


def test_s3_listings_of_more_than_one_page(tmp_path: Path, s3: Any, burn_task: TaskConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    put(s3, *(f"training/{index}_merged.tif" for index in range(25)))
    client = sources._s3_client()
    paginator = client.get_paginator("list_objects_v2")

    class SmallPages:
        def paginate(self, **arguments: Any) -> Any:
            return paginator.paginate(**arguments, PaginationConfig={"PageSize": 10})

    monkeypatch.setattr(client, "get_paginator", lambda _: SmallPages())
    assert len(sources._list_s3(client, "chips", burn_task)) == 25


def test_an_interrupted_download_goes_on(tmp_path: Path, s3: Any, burn_task: TaskConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    put(s3, *(f"training/{index}_merged.tif" for index in range(8)))
    client = sources._s3_client()
    fetched: list[str] = []
    download = client.download_file

    def breaks_down(bucket: str, key: str, *arguments: Any, **more: Any) -> None:
        if len(fetched) == 3:
            raise KeyboardInterrupt
        fetched.append(key)
        download(bucket, key, *arguments, **more)

    monkeypatch.setattr(sources, "_s3_client", lambda: client)
    monkeypatch.setattr(sources, "S3_WORKERS", 1)
    monkeypatch.setattr(client, "download_file", breaks_down)
    with pytest.raises(KeyboardInterrupt):
        resolve_source("s3://chips", burn_task, tmp_path)
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")], "nothing under its final name"
    first = list(fetched)
    fetched.clear()
    monkeypatch.setattr(client, "download_file", lambda bucket, key, *a, **m: (fetched.append(key), download(bucket, key, *a, **m)))
    folder = resolve_source("s3://chips", burn_task, tmp_path)
    assert len(find_chips(folder, "hls_burn_scars")) == 8
    assert not set(first) & set(fetched)


def test_s3_problems_are_one_line(tmp_path: Path, s3: Any, burn_task: TaskConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    refused("s3://nowhere/x", burn_task, tmp_path, "s3://nowhere/x", "no such bucket")
    refused("s3://", burn_task, tmp_path, "s3://BUCKET/PREFIX")
    refused("s3://Bad Bucket!/x", burn_task, tmp_path, "s3://Bad Bucket!/x")
    refused("s3://chips/empty", burn_task, tmp_path, "holds 0 objects")
    put(s3, "v1/readme.txt", "v2/training/../../a_merged.tif")
    refused("s3://chips/v1", burn_task, tmp_path, "holds 1 objects but no chip of layout hls_burn_scars")
    refused("s3://chips/v2", burn_task, tmp_path, "is not a file name")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    refused("s3://chips/v1", burn_task, tmp_path, "no AWS credentials")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    refused("s3://chips/v1", burn_task, tmp_path, "nobody")
    monkeypatch.delenv("AWS_PROFILE")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
        refused("s3://chips/v1", burn_task, tmp_path, "S3 cannot be reached")


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("ExpiredToken", 400, "the credentials have expired"),
        ("AccessDenied", 403, "access is denied"),
        ("InvalidAccessKeyId", 403, "the access key is not known"),
        ("Strange", 400, "S3 answers"),
    ],
)
def test_what_s3_refuses_is_said_in_words(
    tmp_path: Path, s3: Any, burn_task: TaskConfig, monkeypatch: pytest.MonkeyPatch, code: str, status: int, words: str
) -> None:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>No.</Message></Error>".encode()
    with serving({"": (status, {"Content-Type": "application/xml"}, body)}) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        refused("s3://chips/v1", burn_task, tmp_path, words)


# ---- the hub ----

Answer = tuple[int, dict[str, str], bytes]


class serving:
    """A server on a free port that gives the answer of the longest matching path prefix."""

    def __init__(self, answers: dict[str, Answer]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0].strip("/")
                prefix = max((each for each in answers if path.startswith(each)), key=len, default=None)
                status, headers, body = answers[prefix] if prefix is not None else (404, {}, b"")
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self) -> str:
        self.thread.start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def tarball(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def hub(files: dict[str, bytes], commit: str = "a" * 40) -> dict[str, Answer]:
    """What the hub answers about data set OWNER/NAME with these files."""
    as_json = {"Content-Type": "application/json"}
    info = {"id": "OWNER/NAME", "sha": commit, "private": False, "tags": [], "siblings": [{"rfilename": name} for name in files]}
    tree = [{"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()} for name, body in files.items()]
    answers: dict[str, Answer] = {
        "api/datasets/OWNER/NAME": (200, as_json, json.dumps(info).encode()),
        f"api/datasets/OWNER/NAME/tree/{commit}": (200, as_json, json.dumps(tree).encode()),
    }
    for name, body in files.items():
        headers = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": commit}
        answers[f"datasets/OWNER/NAME/resolve/{commit}/{name}"] = (200, headers, body)
    return answers


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "cache"


def nowhere() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_the_hub_archive_is_fetched_unpacked_and_found_again_without_a_network(
    hub_cache: Path, burn_task: TaskConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tarball(*((f"hls_burn_scars/training/{name}{end}", b"x") for name in "ab" for end in ("_merged.tif", ".mask.tif")))
    with serving(hub({"hls_burn_scars.tar.gz": archive, "README.md": b"read me"})) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        folder = resolve_source("hf://OWNER/NAME", burn_task, hub_cache)
        fingerprint = source_fingerprint("hf://OWNER/NAME", burn_task)
    assert [(chip.name, chip.listed_split) for chip in find_chips(folder, "hls_burn_scars")] == [("a", "train"), ("b", "train")]
    monkeypatch.setenv("HF_ENDPOINT", nowhere())
    assert resolve_source("hf://OWNER/NAME", burn_task, hub_cache) == folder
    assert source_fingerprint("hf://OWNER/NAME", burn_task) == fingerprint


def test_a_hub_data_set_of_loose_files_is_used_as_it_is(hub_cache: Path, burn_task: TaskConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(hub({"training/a_merged.tif": b"a", "training/a.mask.tif": b"b"}, commit="b" * 40)) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        folder = resolve_source("hf://OWNER/NAME", burn_task, hub_cache)
    assert [chip.name for chip in find_chips(folder, "hls_burn_scars")] == ["a"]


def test_an_unreachable_hub_is_named_quickly(hub_cache: Path, burn_task: TaskConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", nowhere())
    begin = time.monotonic()
    refused("hf://OWNER/NAME", burn_task, hub_cache, "hf://OWNER/NAME: the Hugging Face hub cannot be reached", "HF_ENDPOINT", "--data")
    assert time.monotonic() - begin < 15


def test_a_hub_that_never_answers_is_given_up(hub_cache: Path, burn_task: TaskConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "HUB_PATIENCE_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        refused("hf://OWNER/NAME", burn_task, hub_cache, "cannot be reached", "no answer within 1 s")


@pytest.mark.parametrize(
    ("code", "status", "words"), [("RepoNotFound", 404, "is not on the hub or is private"), ("GatedRepo", 403, "asks for its terms")]
)
def test_hub_refusals_are_told_apart(
    hub_cache: Path, burn_task: TaskConfig, monkeypatch: pytest.MonkeyPatch, code: str, status: int, words: str
) -> None:
    with serving({"": (status, {"X-Error-Code": code}, b"{}")}) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        refused("hf://OWNER/NAME", burn_task, hub_cache, words)
    refused("hf://NAME", burn_task, hub_cache, "write hf://OWNER/NAME")


def test_archives_cannot_write_outside_and_damaged_ones_are_named(tmp_path: Path) -> None:
    whole = tarball(("a.tif", os.urandom(100_000)))
    cases = {
        "up": (tarball(("../evil.tif", b"x")), "not safe to unpack"),
        "absolute": (tarball((f"{tmp_path}/evil.tif", b"x")), None),
        "cut": (whole[: len(whole) // 2], "not a sound tar archive"),
        "text": (b"hello", "not a sound tar archive"),
    }
    for name, (content, words) in cases.items():
        (tmp_path / f"{name}.tar.gz").write_bytes(content)
        target = tmp_path / "out" / name
        target.mkdir(parents=True)
        if words is None:
            unpack(tmp_path / f"{name}.tar.gz", target, name)  # the data filter strips the leading slash
        else:
            with pytest.raises(SourceError, match=words):
                unpack(tmp_path / f"{name}.tar.gz", target, name)
    assert not list(tmp_path.glob("evil.tif"))
    assert not list((tmp_path / "out").glob("evil.tif"))


def test_a_full_or_forbidden_cache_is_one_line(tmp_path: Path, burn_task: TaskConfig) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError, match="cannot write"):
        resolve_source("synthetic://?chips=6&size=64", burn_task, tmp_path / "file" / "cache")
