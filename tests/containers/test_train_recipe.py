"""What goes into the training image, told from its recipe and locks; no engine needed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from containers.build import context
from tests.containers.test_serve_recipe import CONTAINERS, ROOT, pins

TRAIN = CONTAINERS / "train"
RECIPE = (TRAIN / "Dockerfile").read_text(encoding="utf-8")
LOCK = TRAIN / "requirements.lock"
EXTRAS = ("pipelines", "lora", "aws")
LEFT_OUT = {"moto"}


def stage(name: str) -> str:
    """The recipe's stage of that name; the last one for an empty name."""
    stages = re.split(r"^(?=FROM )", RECIPE, flags=re.MULTILINE)
    return next(
        part for part in stages if part.startswith("FROM") and part.splitlines()[0].endswith(f" AS {name}" if name else "FROM packages")
    )


def test_the_image_has_the_versions_that_the_tests_ran_with() -> None:
    tested = pins(ROOT / "requirements.lock")
    assert {package: version for package, version in pins(LOCK).items() if tested.get(package) != version} == {}


def test_all_that_its_extras_declare_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]
    names = {re.match(r"[a-z0-9-]+", line)[0] for line in declared}  # type: ignore[index]
    assert names - pins(LOCK).keys() - {"torch", "hls-foundry"} == LEFT_OUT


def test_nothing_is_locked_that_only_tests_and_the_rehearsal_use() -> None:
    assert pins(LOCK).keys() & {"moto", "flask", "werkzeug", "pytest", "mypy", "ruff", "uv", "playwright", "ipython"} == set()


def test_every_locked_package_has_a_hash() -> None:
    packages = re.split(r"^(?=[a-z0-9])", LOCK.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    assert len(packages) > 100
    assert [package.split()[0] for package in packages if "--hash=sha256:" not in package] == []


def test_both_images_share_the_layer_of_torch() -> None:
    serve = (CONTAINERS / "serve/Dockerfile").read_text(encoding="utf-8")
    head = RECIPE[RECIPE.index("ARG BASE=") : RECIPE.index("FROM ${BASE}")]
    assert head in serve
    assert stage("torch").rpartition("\n#")[0] in serve


def test_all_code_is_copied_and_after_the_packages() -> None:
    code = stage("code")
    assert code.startswith("FROM packages AS code")
    for name in set(context()) - {"containers", "LICENSE", "README.md", "pyproject.toml", "run.py"}:
        assert f"COPY {name} {name}" in code
    assert "COPY LICENSE README.md pyproject.toml run.py ./" in code
    assert stage("").startswith("FROM packages\n")


@pytest.mark.parametrize("path", sorted(TRAIN.iterdir()), ids=lambda path: path.name)
def test_the_recipe_names_no_host(path: Path) -> None:
    assert re.findall(r"https?://|--(?:extra-)?index-url|--find-links", path.read_text(encoding="utf-8")) == []
