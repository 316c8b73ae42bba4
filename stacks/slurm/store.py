"""Is ZenML's store one that the jobs of a cluster can share: a SQLite file whose locks hold there, or a server that takes our key?"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPException
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from stacks.slurm.findings import Finding

MOUNTS = Path("/proc/mounts")
SERVER_TIMEOUT_S = 5.0
MOVE = "set ZENML_CONFIG_PATH to a folder on a file system with cluster-wide locks, or ZENML_STORE_URL to a ZenML server"
KEY = "set ZENML_STORE_API_KEY to a service account's key (zenml service-account create NAME, on the server)"

LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay", "bcachefs"})
"""Of one machine: its kernel keeps the locks. Good for a rehearsal; whether compute nodes see the file is the probe job's question."""

SHARED_SAFE = {
    "gpfs": "its tokens make POSIX locks hold on all nodes",
    "ceph": "its metadata server keeps POSIX locks for all nodes",
    "gfs2": "its lock manager spans the nodes",
    "ocfs2": "its lock manager spans the nodes",
}
SHARED_UNSAFE = {
    "nfs": "SQLite advises against NFS, as many servers and clients do not keep its locks",
    "nfs4": "SQLite advises against NFS, as many servers and clients do not keep its locks",
    "beegfs": "its locks hold on one node only, unless tuneUseGlobalFileLocks is set",
    "cifs": "its locks are not POSIX locks",
    "smb3": "its locks are not POSIX locks",
    "9p": "it does not pass locks on",
    "afs": "it ignores byte-range locks",
}

_TRY_LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
try:
    connection.execute("BEGIN EXCLUSIVE")
except sqlite3.OperationalError as error:
    sys.exit(3 if "locked" in str(error) else str(error))
"""


@dataclass(frozen=True)
class Mount:
    """The file system that a path lies on."""

    point: str
    type: str
    options: frozenset[str]


def check_store(url: str, config_folder: Path, api_key: str = "", *, mounts: Path = MOUNTS) -> list[Finding]:
    """Look at the store that ZenML uses; `url` is "" where it is the SQLite file in `config_folder`.

    Of a SQLite file: its file system, and whether its locks hold between two processes. Of a server: whether it answers, its
    version, and whether it takes `api_key`, which no finding repeats.
    """
    scheme = url.partition("://")[0] if url else "sqlite"
    if scheme in ("http", "https"):
        return _check_server(url.rstrip("/"), api_key)
    if scheme != "sqlite":
        remedy = "set ZENML_STORE_URL to https://… of a ZenML server, or leave it out"
        return [Finding("store", False, f"{scheme}:… is not a store that jobs share here", remedy)]
    file = sqlite_file(url, config_folder)
    folder = _existing(file.parent)
    if not os.access(folder, os.W_OK):
        return [Finding("store", False, f"{folder} cannot be written", "set ZENML_CONFIG_PATH to a folder of yours")]
    return [_check_file_system(file, folder, mounts), _check_locks(folder)]


def sqlite_file(url: str, config_folder: Path) -> Path:
    """The database behind `url`, sqlite:///PATH; the default one in `config_folder` for ""."""
    if url:
        return Path(url.removeprefix("sqlite:///"))
    return config_folder / "local_stores" / "default_zen_store" / "zenml.db"


def mount_of(path: Path, mounts: Path = MOUNTS) -> Mount | None:
    """The mount that holds `path`: the longest mount point it lies below, the latest where one hides another."""
    found: Mount | None = None
    for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split()
        if len(fields) < 4:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[1])  # a space is written \040
        if path.is_relative_to(point) and (found is None or len(point) >= len(found.point)):
            found = Mount(point, fields[2], frozenset(fields[3].split(",")))
    return found


def judge(mount: Mount) -> tuple[bool, str]:
    """Whether SQLite's locks hold on `mount` for all nodes that see it, and why."""
    kind = mount.type
    if kind in LOCAL:
        return True, "a file system of this machine, whose kernel keeps the locks"
    if kind == "lustre":
        if "flock" in mount.options:
            return True, "mounted with flock, so that locks hold on all nodes"
        return False, "mounted without flock, so that locks do not hold between nodes"
    if kind in SHARED_SAFE:
        return True, SHARED_SAFE[kind]
    return False, SHARED_UNSAFE.get(kind, "not known to keep locks between nodes")


def _existing(folder: Path) -> Path:
    """`folder`, or the nearest one above that is there: at first use ZenML has made nothing yet."""
    resolved = folder.resolve()
    return next(path for path in (resolved, *resolved.parents) if path.is_dir())


def _check_file_system(file: Path, folder: Path, mounts: Path) -> Finding:
    mount = mount_of(folder, mounts)
    if mount is None:
        return Finding("store", False, f"SQLite at {file}, on a file system that {mounts} does not list", MOVE)
    safe, why = judge(mount)
    return Finding("store", safe, f"SQLite at {file}, on {mount.type} ({why})", MOVE)


def _check_locks(folder: Path) -> Finding:
    """A second process must be refused while this one holds the lock, and get it afterwards."""
    name = "store locks"
    try:
        with tempfile.TemporaryDirectory(prefix=".hls-lock-", dir=folder) as scratch:
            database = str(Path(scratch) / "lock.db")
            with closing(sqlite3.connect(database, timeout=0, isolation_level=None)) as connection:
                connection.execute("CREATE TABLE held (one INTEGER)")
                connection.execute("BEGIN EXCLUSIVE")
                during = _try_lock(database)
                connection.execute("COMMIT")
            after = _try_lock(database)
    except (OSError, sqlite3.Error, subprocess.TimeoutExpired) as error:
        return Finding(name, False, f"SQLite cannot work in {folder} ({_words(error)})", MOVE)
    if during.returncode == 3 and after.returncode == 0:
        return Finding(name, True, "hold between two processes on this node")
    if during.returncode == 0:
        return Finding(name, False, f"do not hold in {folder}: two processes had the exclusive lock at once", MOVE)
    return Finding(name, False, f"fail in {folder} ({' '.join((during.stderr + after.stderr).split())[:120]})", MOVE)


def _try_lock(database: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-S", "-c", _TRY_LOCK, database], capture_output=True, text=True, timeout=60)


def _check_server(url: str, api_key: str) -> list[Finding]:
    name, wrong = "store", "check ZENML_STORE_URL: the address of the server's dashboard"
    shown = _without_credentials(url)
    try:
        answer = _ask(f"{url}/api/v1/info")
    except HTTPError as error:
        return [Finding(name, False, f"{shown} answers, but not as a ZenML server (HTTP {error.code})", wrong)]
    except (OSError, HTTPException, ValueError) as error:
        return [Finding(name, False, f"{shown} does not answer ({_words(error)})", f"{wrong}; is it reachable from here?")]
    version = answer.get("version")
    if not isinstance(version, str):
        return [Finding(name, False, f"{shown} answers, but not as a ZenML server", wrong)]
    own = metadata.version("zenml")
    same = version.split(".")[:2] == own.split(".")[:2]
    remedy = f"bring the server to {own}, or use one of that version: client and server must agree"
    reached = Finding(name, same, f"ZenML server {shown}, version {version}" + ("" if same else f", here {own}"), remedy)
    return [reached, _check_key(url, api_key)]


def _check_key(url: str, api_key: str) -> Finding:
    name = "store key"
    if not api_key:
        return Finding(name, False, "ZENML_STORE_API_KEY is not set, and jobs cannot log in by hand", KEY)
    try:
        answer = _ask(f"{url}/api/v1/login", {"grant_type": "zenml-api-key", "password": api_key})
    except HTTPError as error:
        if error.code in (400, 401, 403):
            return Finding(name, False, f"refused by the server (HTTP {error.code})", f"the key is wrong, expired or inactive: {KEY}")
        return Finding(name, False, f"the server fails to log in (HTTP {error.code})", "look at the server's log")
    except (OSError, HTTPException, ValueError) as error:
        return Finding(name, False, f"the server does not answer a login ({_words(error)})", "is it up? try again")
    if not answer.get("access_token"):
        return Finding(name, False, "the server's answer to a login has no token", "check ZENML_STORE_URL")
    return Finding(name, True, "accepted by the server")


def _ask(url: str, form: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A GET, or a POST of `form`; the JSON object it answers, {} for any other answer."""
    data = None if form is None else urlencode(form).encode()
    with urlopen(Request(url, data=data), timeout=SERVER_TIMEOUT_S) as reply:
        try:
            answer = json.loads(reply.read(1_000_000))
        except ValueError:
            return {}
    return answer if isinstance(answer, dict) else {}


def _without_credentials(url: str) -> str:
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def _words(error: BaseException) -> str:
    reason = getattr(error, "reason", error)
    text = getattr(reason, "strerror", None) or str(reason) or type(error).__name__
    return " ".join(text.split())[:120]
