"""Slurm's state words."""

from __future__ import annotations

import pytest

from stacks.slurm.states import JobState


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("CANCELLED by 0", JobState.CANCELLED),
        ("CANCELLED+", JobState.CANCELLED),
        ("OUT_OF_MEMORY", JobState.OUT_OF_MEMORY),
        (" running ", JobState.RUNNING),
        ("CONFIGURING", JobState.RUNNING),
        ("REQUEUE_HOLD", JobState.PENDING),
        ("", JobState.UNKNOWN),
        ("no such state", JobState.UNKNOWN),
    ],
)
def test_words_of_all_commands_are_understood(text: str, state: JobState) -> None:
    assert JobState.parse(text) is state


def test_only_ended_jobs_are_finished_and_only_completed_ones_ok() -> None:
    going_on = {JobState.PENDING, JobState.RUNNING, JobState.COMPLETING, JobState.SUSPENDED, JobState.REQUEUED, JobState.UNKNOWN}
    assert {state for state in JobState if not state.finished} == going_on
    assert [state for state in JobState if state.ok] == [JobState.COMPLETED]
