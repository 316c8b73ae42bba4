"""The compute node's side of `run.py doctor`: reads ask.json in its folder, looks around, writes answer.json. Standard library only.

It is copied beside ask.json and run from there, so that it says something even where the project is not installed on the node.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import sqlite3
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

ANSWER_S = 3.0


def main(folder: Path) -> None:
    """Answer what `folder`/ask.json asks."""
    ask = json.loads((folder / "ask.json").read_text(encoding="utf-8"))
    answer = {
        "nonce": ask["nonce"],
        "node": platform.node(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": {name: version(name) for name in ask["packages"]},
        "store": store(ask["store"]),
        "lock": lock(ask["lock"]),
        "home": writable(ask["home"]),
        "free": {place: free(place) for place in (str(folder), tempfile.gettempdir())},
        "internet": internet(*ask["internet"]),
    }
    partial = folder / "answer.partial"
    partial.write_text(json.dumps(answer), encoding="utf-8")
    partial.replace(folder / "answer.json")


def version(package: str) -> str | None:
    """The installed version, None where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def store(url: str) -> str:
    """ "" where ZenML's store can be read and written from here, else why not."""
    if url.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(f"{url.rstrip('/')}/api/v1/info", timeout=ANSWER_S):
                return ""
        except urllib.error.HTTPError as error:
            return f"HTTP {error.code}"
        except (OSError, ValueError) as error:
            return str(getattr(error, "reason", error))
    file = Path(url.removeprefix("sqlite:///"))
    if not file.is_file():
        return f"{file} is not there"
    if not os.access(file, os.W_OK) or not os.access(file.parent, os.W_OK):
        return f"{file} cannot be written"
    connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=ANSWER_S)
    try:
        connection.execute("SELECT version_num FROM alembic_version").fetchall()
    except sqlite3.Error as error:
        return f"{file}: {error}"
    finally:
        connection.close()
    return ""


def lock(database: str) -> str:
    """What becomes of asking for the exclusive lock that the login node holds: "refused", "granted", or why neither."""
    if not database:
        return ""
    try:
        connection = sqlite3.connect(f"file:{database}?mode=rw", uri=True, timeout=0, isolation_level=None)
        try:
            connection.execute("BEGIN EXCLUSIVE")
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        return "refused" if "locked" in str(error) else str(error)
    return "granted"


def writable(place: str) -> str:
    """ "" where a file can be written below `place`, else why not."""
    folder = Path(place)
    if not folder.is_dir():
        return "is not there"
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def free(place: str) -> int:
    """Free bytes there, for this user."""
    return shutil.disk_usage(place).free


def internet(host: str, port: int) -> bool:
    """Whether `host` outside answers on `port`."""
    reached: list[bool] = []

    def connect() -> None:
        with suppress(OSError), socket.create_connection((host, port), timeout=ANSWER_S):
            reached.append(True)

    # In a thread of its own: asking for a name takes as long as the resolver likes, and no timeout counts for it.
    trying = threading.Thread(target=connect, daemon=True)
    trying.start()
    trying.join(ANSWER_S)
    return bool(reached)


def read_answer(content: bytes) -> dict[str, Any] | None:
    """What main() wrote; None where it is not whole."""
    try:
        answer = json.loads(content)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
