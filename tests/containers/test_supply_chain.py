"""What the bill of materials and the list of licences say of an image, against what is really in it."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path

import pytest

from containers.bill import bill_of, install_tool, licence_rows, merged, write_bill
from containers.build import ImageError, Order
from containers.list_packages import licences
from hls_foundry.endpoints.engine import find_engine
from tests.conftest import missing
from tests.containers.running import Image
from tests.containers.test_build import PODMAN, on_path, program

__all__ = ["on_path"]

LISTED = {
    "python": "3.11.2",
    "debian": [{"name": "libc6", "version": "2.36-9+deb12u13", "architecture": "amd64", "licences": ["LGPL-2.1"]}],
    "bill": {
        "metadata": {"tools": {}},
        "components": [
            {
                "type": "library",
                "bom-ref": "b",
                "name": "b",
                "version": "2",
                "purl": "pkg:pypi/b@2",
                "licenses": [{"expression": "MIT OR BSD-2-Clause"}],
            },
            {
                "type": "library",
                "bom-ref": "a",
                "name": "a",
                "version": "1",
                "purl": "pkg:pypi/a@1",
                "licenses": [{"license": {"id": "MIT"}}],
            },
        ],
        "dependencies": [{"ref": "a"}, {"ref": "b"}],
    },
}
ORDER = Order("serve", tag="hls-foundry-serve:0.1.0")


def test_the_bill_has_python_and_debian_beside_the_packages_and_names_the_image() -> None:
    bill = merged(LISTED, ORDER, "5" * 64)
    assert bill["metadata"]["component"]["name"] == "hls-foundry-serve"
    assert bill["metadata"]["component"]["properties"] == [{"name": "hls-foundry:image-id", "value": f"sha256:{'5' * 64}"}]
    assert [part["name"] for part in bill["components"]] == ["b", "a", "python", "libc6"]
    assert bill["components"][-1]["purl"] == "pkg:deb/debian/libc6@2.36-9%2Bdeb12u13?arch=amd64"
    references = [part["bom-ref"] for part in (bill["metadata"]["component"], *bill["components"])]
    assert sorted(part["ref"] for part in bill["dependencies"]) == sorted(references)


def test_the_licences_are_a_table_with_python_packages_first(tmp_path: Path) -> None:
    bill = merged(LISTED, ORDER, "5" * 64)
    assert licence_rows(bill)[:2] == [("pypi", "a", "1", "MIT"), ("pypi", "b", "2", "MIT OR BSD-2-Clause")]
    whole, table = write_bill(bill, ORDER, tmp_path)
    assert json.loads(whole.read_text()) == bill
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[2] == {"kind": "deb", "name": "libc6", "version": "2.36-9+deb12u13", "licences": "LGPL-2.1"}


def test_a_package_without_a_copyright_file_has_no_licence() -> None:
    assert licences("no-such-package") == []


def test_an_image_that_is_not_there_is_said(on_path: Path, tmp_path: Path) -> None:
    program(on_path, "podman", "exit 125")
    with pytest.raises(ImageError, match=r"no image hls-foundry-serve:0\.1\.0: build it first \(make images\)"):
        bill_of(PODMAN, ORDER, tmp_path)


@pytest.mark.image
@pytest.mark.timeout(1200)
def test_every_package_of_the_image_is_in_its_bill_with_version_and_licence(image: Image, tmp_path: Path) -> None:
    try:
        tool = install_tool()
    except ImageError as error:
        missing(str(error))
    name, _, tag = image.name.rpartition(":")
    bill = bill_of(find_engine(image.engine), Order("serve", tag=f"{name}:{tag}"), tool)
    code = "import json; from importlib.metadata import distributions as d; print(json.dumps({x.metadata['Name']: x.version for x in d()}))"
    asked = [image.engine, "run", "--rm", "--entrypoint", "python", image.name, "-c", code]
    installed = json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
    rows = [row for row in licence_rows(bill) if row[0] in ("pypi", "library")]  # library: our own, which PyPI does not have
    assert len(installed) > 30
    assert {row[1]: row[2] for row in rows} == installed
    assert [row[1] for row in rows if not row[3]] == []
    assert "libc6" in {part["name"] for part in bill["components"] if part.get("purl", "").startswith("pkg:deb/")}
    valid = (
        "import sys; sys.path.insert(0, '/tool'); from cyclonedx.schema import SchemaVersion as V; "
        "from cyclonedx.validation.json import JsonStrictValidator as J; print(J(V.V1_6).validate_str(sys.stdin.read()))"
    )
    look = [image.engine, "run", "--rm", "-i", "-v", f"{tool}:/tool:ro,z", "--entrypoint", "python", image.name, "-c", valid]
    told = subprocess.run(look, input=json.dumps(bill), capture_output=True, text=True, check=True).stdout
    assert told.strip() == "None"
