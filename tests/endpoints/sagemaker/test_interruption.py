"""Deployments and deletions that are killed after each of their calls, and completed by the next run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from hls_foundry.endpoints.sagemaker.resources import ModelVersion
from tests.endpoints.sagemaker.accounts import NAME, Account

ROOT = Path(__file__).resolve().parents[3]
KILLED = -9
NOTHING = {"endpoints": {}, "configs": [], "models": [], "objects": [], "scaling": [], "alarms": []}
SCALED = {"multi_model": {"min": 1, "max": 2}, "async": {"min": 0, "max": 2}}


class Driver:
    """Runs cases in processes that may be killed."""

    def __init__(self, account: Account) -> None:
        self._account = account
        command = [sys.executable, "-m", "tests.endpoints.sagemaker.killed_driver"]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        environment = {**kept, **account.environment}
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(
        self, do: str, models: dict[str, ModelVersion], *, kind: str, check: str = "pass", kill_after: int | None = None
    ) -> tuple[int, list[str]]:
        """Exit code and the calls that changed something."""
        changes = {"autoscaling": SCALED[kind]} if kind in SCALED else {}
        case: dict[str, Any] = {"do": do, "check": check, "kill_after": kill_after}
        case["settings"] = self._account.settings(kind, **changes).model_dump(mode="json")
        case["models"] = {task: asdict(model) for task, model in models.items()}
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        told = json.loads(self._process.stdout.readline())
        return told["ended"], told["calls"]

    def end(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(10)


@pytest.fixture(scope="module")
def driver(shared_account: Account) -> Iterator[Driver]:
    made = Driver(shared_account)
    yield made
    made.end()


def test_a_killed_creation_is_completed_by_the_next_run(account: Account, driver: Driver) -> None:
    models = account.both("1")
    ended, calls = driver.run("deploy", models, kind="multi_model")
    assert ended == 0
    assert {"CopyObject", "CreateModel", "CreateEndpointConfig", "CreateEndpoint", "PutScalingPolicy"} <= set(calls)
    whole = account.left()
    for number in range(1, len(calls) + 1):
        assert driver.run("delete", models, kind="multi_model")[0] == 0
        assert driver.run("deploy", models, kind="multi_model", kill_after=number)[0] == KILLED
        assert driver.run("deploy", models, kind="multi_model")[0] == 0, f"killed after {calls[:number]}"
        assert account.left() == whole, f"killed after {calls[:number]}"


def test_a_killed_update_is_completed_undone_or_replaced_by_the_next_run(account: Account, driver: Driver) -> None:
    first, second, third = ({"burn_scars": account.published(number)} for number in "123")
    wholes = []
    for models in (third, second, first):
        assert driver.run("deploy", models, kind="realtime")[0] == 0
        wholes.append(account.left())
    with_third, with_second, with_first = wholes
    _, calls = driver.run("deploy", second, kind="realtime")
    assert "UpdateEndpoint" in calls
    passed = calls.index("AddTags") + 1  # from there on the second is the one to go back to
    for number in range(1, len(calls) + 1):
        undone = with_second if number >= passed else with_first
        cases = [(third, "fail", 2, undone), (second, "pass", 0, with_second)]
        if calls[number - 1] in ("UpdateEndpoint", "AddTags"):
            cases += [(third, "pass", 0, with_third), (second, "fail", 2, undone)]
        else:
            del cases[number % 2]  # one of the two is enough where nothing new is in service
        for models, check, ended, whole in cases:
            if account.left() != with_first:
                assert driver.run("deploy", first, kind="realtime")[0] == 0
            assert driver.run("deploy", second, kind="realtime", kill_after=number)[0] == KILLED
            assert driver.run("deploy", models, kind="realtime", check=check)[0] == ended
            assert account.left() == whole, f"killed after {calls[:number]}, then {check}"


def test_a_killed_way_back_is_gone_to_its_end_by_the_next_run(account: Account, driver: Driver) -> None:
    first, second = account.one("1"), account.one("2")
    assert driver.run("deploy", first, kind="async")[0] == 0
    whole = account.left()
    ended, calls = driver.run("deploy", second, kind="async", check="fail")
    assert ended == 2
    assert calls.count("UpdateEndpoint") == 2
    assert account.left() == whole
    for number in range(calls.index("UpdateEndpoint") + 1, len(calls) + 1):
        assert driver.run("deploy", second, kind="async", check="fail", kill_after=number)[0] == KILLED
        assert driver.run("deploy", second, kind="async", check="fail")[0] == 2
        assert account.left() == whole, f"killed after {calls[:number]}"


def test_a_killed_deletion_is_completed_by_the_next(account: Account, driver: Driver) -> None:
    models = account.both("1")
    assert driver.run("deploy", models, kind="multi_model")[0] == 0
    _, calls = driver.run("delete", models, kind="multi_model")
    assert {"DeleteScalingPolicy", "DeleteEndpoint", "DeleteModel", "DeleteObject"} <= set(calls)
    for number in range(1, len(calls) + 1):
        assert driver.run("deploy", models, kind="multi_model")[0] == 0
        assert driver.run("delete", models, kind="multi_model", kill_after=number)[0] == KILLED
        ended = driver.run("delete", models, kind="multi_model")[0]
        left = account.left()
        assert left in (NOTHING, {**NOTHING, "objects": [f"{NAME}/claim.json"]}), f"killed after {calls[:number]}"
        assert ended == 0 or number >= len(calls) - 1, "2 only where nothing but the claim was left"
