"""Two runs of one configuration at once, and a job that is started again: each finds its own folder."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from hls_foundry.errors import TrainingError
from hls_foundry.training.work_folder import claimed


def _where(first: Path, environment: dict[str, str]) -> tuple[str, bool]:
    with claimed(first, environment) as work:
        return work.path.name, work.restarted


def elsewhere(first: Path, environment: dict[str, str]) -> tuple[str, bool]:
    """In another process, as locks are a process's."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_where, (first, environment))


def test_a_second_run_at_the_same_time_works_beside_the_first_and_a_later_one_in_its_place(tmp_path: Path) -> None:
    first = tmp_path / "training" / "abc"
    with claimed(first, {"HLS_RUN_ID": "one"}) as work:
        assert (work.path, work.restarted) == (first, False)
        assert elsewhere(first, {"HLS_RUN_ID": "two"}) == ("abc.2", False)
    assert elsewhere(first, {"HLS_RUN_ID": "three"}) == ("abc", False)


def test_a_restarted_job_finds_its_own_folder_again(tmp_path: Path) -> None:
    first = tmp_path / "abc"
    with claimed(first, {"HLS_RUN_ID": "one"}):
        assert elsewhere(first, {"HLS_RUN_ID": "two"}) == ("abc.2", False)
    assert elsewhere(first, {"HLS_RUN_ID": "two", "HLS_STEP_REENTER": "1"}) == ("abc.2", True)
    assert elsewhere(first, {"HLS_RUN_ID": "four", "HLS_STEP_REENTER": "1"}) == ("abc", False)


def test_an_unwritable_home_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot write"), claimed(tmp_path / "file" / "abc", {}):
        pass
