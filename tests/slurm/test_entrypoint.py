"""How a step's process in a job ends."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from hls_foundry.errors import FoundryError, TrainingError
from stacks.slurm import entrypoint


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def ends_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the entry point of a step that raises `error`."""

    class Step:
        def __init__(self, arguments: list[str]) -> None: ...

        def prepare_code_environment(self) -> None: ...

        def run(self) -> None:
            raise error

    monkeypatch.setitem(entrypoint.ENTRYPOINTS, "step", Step)
    monkeypatch.setattr(entrypoint, "activate_on_demand", lambda: None)
    monkeypatch.setattr(entrypoint, "Client", lambda: SimpleNamespace(zen_store=None))
    entrypoint.main(["step"])


def test_what_a_user_can_mend_ends_without_a_trace_and_a_defect_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as ended:
        ends_with(TrainingError("loss is nan at step 3"), monkeypatch)
    assert ended.value.code == 1
    assert issubclass(TrainingError, FoundryError)
    with pytest.raises(ZeroDivisionError):
        ends_with(ZeroDivisionError(), monkeypatch)
