"""ZenML's store: SQLite where its locks hold, and servers that are not there, not ZenML, of another version, or refuse the key."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from stacks.slurm import store
from stacks.slurm.findings import Finding
from stacks.slurm.store import check_store, judge, mount_of, sqlite_file

KEY = "ZENKEY_secret"
VERSION = metadata.version("zenml")
Answer = Callable[[str, dict[str, list[str]]], tuple[int, bytes]]


# ---- SQLite ----


def test_a_file_on_this_machine_passes_and_leaves_nothing(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("/dev/vda / ext4 rw 0 0\n")
    home = tmp_path / "zenml"
    found = check_store("", home, mounts=mounts)
    assert [finding.passed for finding in found] == [True, True], found
    assert str(home / "local_stores" / "default_zen_store" / "zenml.db") in found[0].found
    assert "ext4" in found[0].found
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mounts"]


@pytest.mark.parametrize(
    ("kind", "options", "safe"),
    [
        ("gpfs", "rw", True),
        ("ceph", "rw", True),
        ("lustre", "rw,flock,lazystatfs", True),
        ("lustre", "rw,localflock", False),
        ("lustre", "rw,noflock", False),
        ("nfs", "rw,nolock", False),
        ("nfs4", "rw", False),
        ("beegfs", "rw", False),
        ("cifs", "rw", False),
        ("fuse.sshfs", "rw", False),
        ("ext4", "rw", True),
    ],
)
def test_file_systems_are_judged_by_their_locks(tmp_path: Path, kind: str, options: str, safe: bool) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/vda / xfs rw 0 0\nserver:/x {tmp_path} {kind} {options} 0 0\n")
    first = check_store(f"sqlite:///{tmp_path}/zenml.db", Path("unused"), mounts=mounts)[0]
    assert first.passed is safe
    assert kind in first.found
    assert "\n" not in first.found + first.remedy
    if not safe:
        assert "ZENML_CONFIG_PATH" in first.remedy


def test_the_longest_mount_point_counts_and_spaces_are_read(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("a / ext4 rw 0 0\nb /work nfs rw 0 0\nc /work/my\\040proj gpfs rw 0 0\nd /work/my\\040proj xfs rw 0 0\n")
    for path, kind in (("/worker", "ext4"), ("/work/x", "nfs"), ("/work/my proj/y", "xfs"), ("/work/my project", "nfs")):
        mount = mount_of(Path(path), mounts)
        assert mount is not None
        assert mount.type == kind
    assert judge(store.Mount("/", "unheard", frozenset())) == (False, "not known to keep locks between nodes")


def test_this_machine_s_own_mounts_are_understood(tmp_path: Path) -> None:
    mount = mount_of(tmp_path.resolve())
    assert mount is not None
    assert mount.type


def test_locks_that_do_not_hold_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A second process that ignores locks is what one sees on a file system that does not pass them on.
    monkeypatch.setattr(store, "_TRY_LOCK", store._TRY_LOCK.replace("sys.argv[1]", "'file:' + sys.argv[1] + '?nolock=1', uri=True"))
    found = check_store("", tmp_path)[-1]
    assert not found.passed
    assert "two processes had the exclusive lock at once" in found.found


def test_a_store_below_a_file_or_in_a_read_only_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.os, "access", lambda *_: False)  # tests run as root, who may write everywhere
    (found,) = check_store("", tmp_path)
    assert not found.passed
    assert "ZENML_CONFIG_PATH" in found.remedy


def test_the_file_behind_a_url() -> None:
    assert sqlite_file("sqlite:////a/b.db", Path("/c")) == Path("/a/b.db")
    assert sqlite_file("", Path("/c")) == Path("/c/local_stores/default_zen_store/zenml.db")


# ---- a server ----


@contextmanager
def server(answer: Answer) -> Iterator[str]:
    """A stand-in for a ZenML server at its network edge."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode())
            status, body = answer(self.path, form)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            return

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.server_port}"
    listening.shutdown()
    listening.server_close()
    thread.join()


def zenml(path: str, form: dict[str, list[str]], version: str = VERSION) -> tuple[int, bytes]:
    if path == "/api/v1/info":
        return 200, json.dumps({"version": version, "auth_scheme": "OAUTH2_PASSWORD_BEARER"}).encode()
    if path == "/api/v1/login" and form == {"grant_type": ["zenml-api-key"], "password": [KEY]}:
        return 200, b'{"access_token": "t", "token_type": "bearer"}'
    return (401, b'{"detail": "no"}') if path == "/api/v1/login" else (404, b"")


def only(found: list[Finding]) -> Finding:
    assert len(found) == 1
    return found[0]


def test_a_server_that_takes_the_key_passes(tmp_path: Path) -> None:
    with server(zenml) as url:
        found = check_store(f"{url}/", tmp_path, KEY)
    assert [finding.passed for finding in found] == [True, True], found
    assert VERSION in found[0].found


def test_a_wrong_or_missing_key_is_one_line_without_the_key(tmp_path: Path) -> None:
    with server(zenml) as url:
        for key, words in (("ZENKEY_other", "refused by the server (HTTP 401)"), ("", "ZENML_STORE_API_KEY is not set")):
            reached, refused = check_store(url, tmp_path, key)
            assert reached.passed
            assert not refused.passed
            assert words in refused.found
            assert "service-account" in refused.remedy
            assert "ZENKEY_other" not in refused.found + refused.remedy


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda path, form: (404, b"not here"), "not as a ZenML server (HTTP 404)"),
        (lambda path, form: (200, b"<html>welcome</html>"), "not as a ZenML server"),
        (lambda path, form: (200, b"[1]"), "not as a ZenML server"),
        (lambda path, form: (503, b""), "(HTTP 503)"),
    ],
)
def test_what_is_no_zenml_server_is_one_line(tmp_path: Path, answer: Answer, words: str) -> None:
    with server(answer) as url:
        finding = only(check_store(url, tmp_path, KEY))
    assert not finding.passed
    assert words in finding.found
    assert "ZENML_STORE_URL" in finding.remedy


def test_another_version_names_both(tmp_path: Path) -> None:
    with server(lambda path, form: zenml(path, form, "0.50.1")) as url:
        finding = check_store(url, tmp_path, KEY)[0]
    assert not finding.passed
    assert "0.50.1" in finding.found
    assert VERSION in finding.found


def test_a_server_that_fails_to_log_in_is_told_from_a_wrong_key(tmp_path: Path) -> None:
    with server(lambda path, form: zenml(path, form) if "info" in path else (500, b"")) as url:
        assert "fails to log in (HTTP 500)" in check_store(url, tmp_path, KEY)[1].found
    with server(lambda path, form: zenml(path, form) if "info" in path else (200, b"{}")) as url:
        assert "no token" in check_store(url, tmp_path, KEY)[1].found


def test_a_server_that_is_not_there_or_never_answers_is_said_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SERVER_TIMEOUT_S", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        assert "does not answer (Connection refused)" in only(check_store(f"http://127.0.0.1:{port}", tmp_path, KEY)).found
        silent.listen()
        assert "does not answer (timed out)" in only(check_store(f"http://127.0.0.1:{port}", tmp_path, KEY)).found


@pytest.mark.parametrize("url", ["http://", "https://[", "http://exa mple", "mysql://u:secret@h/db", "zenml.example.org", "htps://x"])
def test_urls_that_are_none_are_one_line(tmp_path: Path, url: str) -> None:
    finding = only(check_store(url, tmp_path, KEY))
    assert not finding.passed
    assert "ZENML_STORE_URL" in finding.remedy
    assert "secret" not in finding.found + finding.remedy
