"""Runs inside an image, with cyclonedx-py mounted at /tool: prints as JSON what is installed there, of Python and of Debian."""

from __future__ import annotations

import json
import platform
import re
import runpy
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

TOOL, ANSWER = "/tool", Path("/tmp/bom.json")
QUERY = "${db:Status-Abbrev}\\t${Package}\\t${Version}\\t${Architecture}\\n"


def python_packages() -> dict[str, Any]:
    """cyclonedx-py's bill of the packages that this interpreter can import."""
    sys.path.insert(0, TOOL)  # not PYTHONPATH, which the interpreter that is looked at would have as well
    sys.argv = [
        "cyclonedx-py",
        "environment",
        "--spec-version",
        "1.6",
        "--output-reproducible",
        "--output-file",
        str(ANSWER),
        sys.executable,
    ]
    try:
        runpy.run_module("cyclonedx_py", run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    bill: dict[str, Any] = json.loads(ANSWER.read_text(encoding="utf-8"))
    for component in bill["components"]:
        if not component.get("licenses"):  # the tool takes no words that are no name of SPDX's
            told = metadata(component["name"]).get_all("License") or []
            component["licenses"] = [{"license": {"name": text.splitlines()[0], "acknowledgement": "declared"}} for text in told if text]
    return bill


def debian_packages() -> list[dict[str, Any]]:
    """Name, version, architecture and licences of what dpkg has installed; empty where the image is not Debian's."""
    try:
        told = subprocess.run(["dpkg-query", "--show", "--showformat", QUERY], capture_output=True, text=True, check=True).stdout
    except OSError:
        return []
    rows = (line.split("\t") for line in told.splitlines() if line.startswith("ii"))
    return [{"name": name, "version": version, "architecture": of, "licences": licences(name)} for _, name, version, of in rows]


def licences(package: str) -> list[str]:
    """The short names in Debian's copyright file, where the base keeps it and it is of the kind that machines read."""
    try:
        text = Path("/usr/share/doc", package, "copyright").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return sorted(set(re.findall(r"^License: *(\S.*)$", text, re.MULTILINE)))


if __name__ == "__main__":
    json.dump({"python": platform.python_version(), "bill": python_packages(), "debian": debian_packages()}, sys.stdout)
