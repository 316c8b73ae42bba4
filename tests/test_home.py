"""Where paths count from: the repository, or the checkout that a frozen copy of the code was submitted from."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hls_foundry import home, revision


@pytest.fixture(autouse=True)
def _no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HLS_FOUNDRY_HOME", raising=False)
    monkeypatch.delenv("HLS_FOUNDRY_CHECKOUT", raising=False)


def test_without_a_choice_everything_counts_from_the_repository() -> None:
    assert home.checkout() == home.REPOSITORY
    assert home.foundry_home() == home.REPOSITORY / ".foundry"
    assert home.resolve_path("data/chips") == home.REPOSITORY / "data/chips"


def test_a_frozen_copy_counts_from_the_checkout_it_was_submitted_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HLS_FOUNDRY_CHECKOUT", str(tmp_path))
    assert home.checkout() == tmp_path
    assert home.foundry_home() == tmp_path / ".foundry"
    assert home.resolve_path("data/chips") == tmp_path / "data/chips"
    assert home.resolve_path("/elsewhere/chips") == Path("/elsewhere/chips")
    assert Path(home.__file__).is_relative_to(home.REPOSITORY)


def test_a_chosen_home_wins_over_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HLS_FOUNDRY_CHECKOUT", str(tmp_path / "checkout"))
    monkeypatch.setenv("HLS_FOUNDRY_HOME", str(tmp_path / "home"))
    assert home.foundry_home() == tmp_path / "home"


def test_a_relative_choice_and_the_users_own_folder_are_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("HLS_FOUNDRY_CHECKOUT", "here")
    monkeypatch.setenv("HLS_FOUNDRY_HOME", "~/work")
    assert home.checkout() == tmp_path / "here"
    assert home.foundry_home() == tmp_path / "me" / "work"


def test_a_frozen_copy_of_the_code_knows_its_own_root(tmp_path: Path) -> None:
    package = tmp_path / "code" / "hls_foundry"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    shutil.copy(home.__file__, package / "home.py")
    asked = "from hls_foundry.home import *; print(REPOSITORY); print(checkout())"
    environment = {"HLS_FOUNDRY_CHECKOUT": str(tmp_path), "PYTHONPATH": str(package.parent)}
    said = subprocess.run([sys.executable, "-c", asked], env=environment, cwd="/", capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.split() == [str(package.parent), str(tmp_path)]


def test_a_frozen_copy_names_the_revision_it_was_made_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(revision, "REPOSITORY", tmp_path)
    assert revision.code_version() == "unknown"
    (tmp_path / home.REVISION_FILE).write_text("0123456789ab+changes\n")
    assert revision.code_version() == "0123456789ab+changes"


def test_the_revision_of_a_checkout_has_twelve_digits() -> None:
    assert revision.code_version() == "unknown" or len(revision.code_version().removesuffix("+changes")) == 12
