"""Every path of a run has one name, and different steps never share a folder."""

from __future__ import annotations

import itertools
import os
from pathlib import Path, PurePosixPath

from stacks.slurm.run_directory import RunDirectory, folder_name

RUN = RunDirectory(PurePosixPath("/shared/runs/1"))


def test_the_paths_are_those_of_the_contract() -> None:
    named = [RUN.code, RUN.plan, RUN.jobs, RUN.environment, RUN.outcome, RUN.stopping]
    assert [str(path.relative_to(RUN.root)) for path in named] == [
        "code",
        "plan.json",
        "jobs.json",
        "environment",
        "outcome.json",
        "stopping",
    ]
    step = RUN.step("fine_tune")
    assert step.root == RUN.root / "steps" / "fine_tune"
    paths = [step.script, step.environment, step.log, step.state, step.progress, step.usage]
    assert [str(path.relative_to(step.root)) for path in paths] == ["job.sh", "environment", "log", "state.json", "progress", "usage"]
    assert RUN.closing.log == RUN.root / "closing" / "log"
    assert RUN.failure.log == RUN.root / "failure" / "log"


def test_usual_step_names_are_their_own_folders() -> None:
    for name in ("fine_tune", "load_data_2", "a-b.c", "A"):
        assert folder_name(name) == name


ODD = ["", " ", ".", "..", ".hidden", "=2E", "=", "a b", "a=20b", "a/b", "a\\b", "a\nb", "../../etc", "-rf", "é", "e\u0301",
       "日本語", "\ud800", "$HOME", "'", '"', "%j", "~", "*", "a" * 121, "a" * 122, "a" * 300, "é" * 200, "é" * 201, "a b" * 80, "a"
       * 86 + "=-" + "0" * 32]  # fmt: skip


def test_odd_step_names_stay_one_folder_below_steps(tmp_path: Path) -> None:
    for name in ODD:
        made = folder_name(name)
        assert made not in ("", ".", "..")
        assert made[0] not in ".-"
        assert len(made) <= 120
        assert set(made) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.=-")
        (tmp_path / made).mkdir()  # fails where two are the same
    assert len(os.listdir(tmp_path)) == len(ODD)  # noqa: PTH208


def test_no_two_short_names_share_a_folder() -> None:
    alphabet = "a=.-2E/ é"
    names = ["".join(letters) for length in range(5) for letters in itertools.product(alphabet, repeat=length)]
    assert len({folder_name(name) for name in names}) == len(names)
