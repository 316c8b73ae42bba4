"""run.py report: one file for a run, whatever its state and wherever its artifacts are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cli.artifacts import made_by
from tests.cli.asked import Session

TRAINED = "burn_scars-train-20261123-120000-abcd"
DEPLOYED = "burn_scars-deploy-20261123-120500-abcd"
FAILED = "flood-train-20261123-121000-abcd"


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    session = Session(tmp_path_factory.mktemp("home"))
    yield session
    session.close()


@pytest.fixture(scope="module")
def before_any_run(session: Session) -> dict[str, Any]:
    return session.run("report")


@pytest.fixture(scope="module")
def runs(session: Session, before_any_run: dict[str, Any]) -> None:
    session.ask("make_training", TRAINED, False)
    session.ask("make_model", "burn_scars", [{"published_by": TRAINED}])
    session.ask("make_deployment", DEPLOYED)
    session.ask("make_training", FAILED, True)


def written(answer: dict[str, Any]) -> str:
    """The page that the command says it wrote."""
    assert answer["code"] == 0, answer
    path = re.search(r"^report +(.+) \([\d.]+ MB\)$", answer["out"], re.M)
    assert path, answer["out"]
    return Path(path[1]).read_text(encoding="utf-8")


def headings(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


def test_without_runs_it_says_how_to_start_one(before_any_run: dict[str, Any]) -> None:
    assert before_any_run["code"] == 2
    assert before_any_run["err"].startswith("error: no runs yet")


def test_the_latest_run_of_a_task_comes_with_the_training_that_made_its_model(session: Session, runs: None, tmp_path: Path) -> None:
    answer = session.run(
        "report", "latest", "--task", "burn_scars", "--out", str(tmp_path / "new" / "r.html"), "--png", str(tmp_path / "p")
    )
    page = written(answer)
    assert headings(page) == ["Chips", "Reflectance", "Fine-tuning", "Promotion", "Model in production", "Lineage"]
    assert f"{TRAINED}: completed. Run {DEPLOYED}: completed." in page
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", page)
    assert {path.name for path in (tmp_path / "p").iterdir()} == {"footprints.png", "band_histograms.png", "curves.png", "comparison.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "p").iterdir())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["r.html"]


def test_a_failed_run_is_told_as_far_as_it_came(session: Session, runs: None) -> None:
    page = written(session.run("report", "--task", "flood"))
    assert headings(page) == ["State", "Chips", "Reflectance", "Fine-tuning", "Lineage"]
    assert "Failed in step promote: the version in production cannot be read: log in to S3" in page
    assert "Flood on stack" in page


def test_what_was_deleted_says_so_in_its_place(session: Session, runs: None) -> None:
    session.ask("lose", FAILED, "ingest")
    answer = session.run("report", FAILED)
    page = written(answer)
    assert headings(page) == ["State", "Chips", "Fine-tuning", "Lineage"]
    assert "This artifact cannot be read here:" in page
    assert "there is no such file any more" in page
    assert "missing     Chips:" in answer["err"]


def test_a_run_that_goes_on_says_so(session: Session, runs: None, tmp_path: Path) -> None:
    session.ask("look_meanwhile", "burn_scars-train-20261123-122000-abcd", str(tmp_path / "meanwhile.html"))
    page = (tmp_path / "meanwhile.html").read_text()
    assert "The run is running: this is what it has made so far." in page
    assert headings(page) == ["State", "Chips", "Reflectance", "Lineage"]


def test_what_a_user_can_mend_is_one_line(session: Session, runs: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for arguments, message in (
        (("nothing",), "no run 'nothing'"),
        (("--task", "snow"), "no runs of task 'snow' yet"),
        ((TRAINED, "--out", str(tmp_path)), f"--out {tmp_path} cannot be written: it is a folder"),
        ((TRAINED, "--out", str(tmp_path / "file" / "r.html")), "cannot be written"),
        ((TRAINED, "--out", str(tmp_path / "r.html"), "--png", str(tmp_path / "file")), f"--png {tmp_path / 'file'} cannot be written"),
    ):
        answer = session.run("report", *arguments)
        assert answer["code"] == 2, answer
        assert message in answer["err"]
        assert len(answer["err"].splitlines()) == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_a_store_that_does_not_answer_is_asked_once() -> None:
    asked = []

    def refuse(name: str) -> Any:
        asked.append(name)
        raise ConnectionError("Could not connect to the endpoint URL")

    outputs = [
        SimpleNamespace(name=name, uri=f"s3://bucket/{name}", artifact_store_id="store", load=lambda name=name: refuse(name))
        for name in ("chip inventory", "training curves")
    ]
    step = SimpleNamespace(status=SimpleNamespace(is_successful=True), outputs={"output": outputs})
    made = made_by(SimpleNamespace(steps={"ingest": step}))  # type: ignore[arg-type]
    assert asked == ["chip inventory"]
    assert made.missing == {
        "inventory": "s3://bucket/chip inventory: ConnectionError: Could not connect to the endpoint URL",
        "training_history": "s3://bucket/training curves: ConnectionError: Could not connect to the endpoint URL",
    }
