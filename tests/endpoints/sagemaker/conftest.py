"""A control plane for a module's tests, and an account in it for each test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.endpoints.sagemaker.accounts import Account
from tests.endpoints.sagemaker.states import States, control_plane


@pytest.fixture(scope="package")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], States]]:
    with control_plane(tmp_path_factory.mktemp("control_plane")) as (environment, states):
        yield environment, states


@pytest.fixture(scope="package")
def shared_account(plane: tuple[dict[str, str], States]) -> Account:
    """One for all tests: making clients takes longer than using them."""
    return Account(*plane)


@pytest.fixture
def account(shared_account: Account, monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    """An account with a bucket and a role, in which nothing of a test stays."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in shared_account.environment.items():
        monkeypatch.setenv(name, value)
    shared_account.states.reset()
    yield shared_account
    shared_account.states.reset()
    shared_account.clear()
