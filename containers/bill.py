"""Writes what is in the images, as bill of materials (CycloneDX) and list of licences: `python -m containers.bill`, after `make images`."""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from containers.build import ROOT, ImageError, Order, chosen_images, inspect
from hls_foundry.endpoints.engine import ENGINES, Engine, find_engine
from hls_foundry.errors import FoundryError

LOCK = ROOT / "containers/sbom.lock"
TOOL = ROOT / "build/tools/cyclonedx"
FOLDER = ROOT / "build/images"
PROGRAM = ROOT / "containers/list_packages.py"


def install_tool(folder: Path = TOOL) -> Path:
    """cyclonedx-py in a folder of its own, from its lock with hashes; again only where the lock has changed. Raises ImageError."""
    mark = folder / "installed.lock"
    if mark.is_file() and mark.read_bytes() == LOCK.read_bytes():
        return folder
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade", "--no-deps"]
    command += ["--require-hashes", "--only-binary", ":all:", "--target", str(folder), "--requirement", str(LOCK)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.startswith("ERROR")), done.stderr.strip()[-200:])
        raise ImageError(f"pip cannot install cyclonedx-py from {LOCK.name} ({last}): look at its network, or set PIP_CONFIG_FILE")
    mark.write_bytes(LOCK.read_bytes())
    return folder


def bill_of(engine: Engine, order: Order, tool: Path) -> dict[str, Any]:
    """The bill of an image that the engine has, made in a container of it without network. Raises ImageError."""
    identity = inspect(engine, order.reference, "{{.Id}}").removeprefix("sha256:")
    command = [engine.program, "run", "--rm", "--interactive", "--network", "none", "--read-only", "--tmpfs", "/tmp"]
    command += ["--volume", f"{tool}:/tool:ro,z", "--entrypoint", "python", order.reference, "-"]
    done = subprocess.run(command, input=PROGRAM.read_text(encoding="utf-8"), capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        raise ImageError(f"{order.reference} does not tell what is in it: {last[:300]}")
    return merged(json.loads(done.stdout), order, identity)


def merged(listed: Mapping[str, Any], order: Order, identity: str) -> dict[str, Any]:
    """The bill of the image: that of its Python packages, with Python itself, Debian's packages and the image's name and id."""
    bill: dict[str, Any] = dict(listed["bill"])
    name, _, version = order.reference.rpartition(":")
    properties = [{"name": "hls-foundry:image-id", "value": f"sha256:{identity}"}]
    whole = {"type": "container", "bom-ref": "image", "name": name, "version": version, "properties": properties}
    python = {"type": "platform", "bom-ref": "python", "name": "python", "version": listed["python"], "licenses": _licences(["PSF-2.0"])}
    others = [python, *(_debian(package) for package in listed["debian"])]
    bill["metadata"] = {**bill["metadata"], "component": whole}
    bill["components"] = [*bill["components"], *others]
    bill["dependencies"] = [*bill["dependencies"], *({"ref": part["bom-ref"]} for part in [whole, *others])]
    return bill


def _debian(package: Mapping[str, Any]) -> dict[str, Any]:
    name, version = package["name"], package["version"]
    purl = f"pkg:deb/debian/{quote(name, safe='')}@{quote(version, safe='')}?arch={package['architecture']}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl, "licenses": _licences(package["licences"])}


def _licences(names: Sequence[str]) -> list[dict[str, Any]]:
    return [{"license": {"name": name, "acknowledgement": "declared"}} for name in names]


def licence_rows(bill: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Of each component its kind (pypi, library for what PyPI does not have, deb, platform), name, version and licences, sorted."""
    rows = []
    for part in bill["components"]:
        kind = part.get("purl", "").removeprefix("pkg:").partition("/")[0] or part["type"]
        found = [entry.get("expression") or entry["license"].get("id") or entry["license"]["name"] for entry in part.get("licenses", ())]
        rows.append((kind, part["name"], part["version"], "; ".join(name.removeprefix("License :: OSI Approved :: ") for name in found)))
    return sorted(rows, key=lambda row: (row[0] != "pypi", row[0], row[1].lower()))


def write_bill(bill: Mapping[str, Any], order: Order, folder: Path = FOLDER) -> tuple[Path, Path]:
    """The bill and its licences as NAME-VERSION.cdx.json and NAME-VERSION.licences.csv in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = order.reference.replace("/", "-").replace(":", "-")
    whole, licences = folder / f"{stem}.cdx.json", folder / f"{stem}.licences.csv"
    whole.write_text(json.dumps(bill, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    with licences.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("kind", "name", "version", "licences"), *licence_rows(bill)])
    return whole, licences


def main(arguments: list[str] | None = None) -> int:
    """Write what the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m containers.bill", description=__doc__)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="serve, train or all (default: all)")
    parser.add_argument("--engine", choices=ENGINES, help="none: the first that answers")
    parser.add_argument("--tag", help="name of the image, where one is asked for (default: hls-foundry-IMAGE:VERSION)")
    options = parser.parse_args(arguments)
    try:
        chosen = chosen_images(options.images)
        if options.tag and len(chosen) > 1:
            raise ImageError("--tag names one image: say which it is")
        engine, tool = find_engine(options.engine), install_tool()
        for name in chosen:
            order = Order(name, tag=options.tag)
            bill = bill_of(engine, order, tool)
            whole, licences = write_bill(bill, order)
            print(f"{order.reference}  {len(bill['components'])} components  {whole.relative_to(ROOT)}  {licences.name}", flush=True)
    except FoundryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
