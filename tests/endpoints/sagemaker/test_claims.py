"""One change of an endpoint at a time: claims in S3, by real conditional writes."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest

from hls_foundry.endpoints.sagemaker import claim as claims
from hls_foundry.endpoints.sagemaker.claim import claimed
from hls_foundry.endpoints.sagemaker.resources import Place
from hls_foundry.errors import EndpointError
from tests.endpoints.sagemaker.accounts import NAME, Account

PREFIX = f"hls-foundry/endpoints/{NAME}/"


@pytest.fixture
def place(account: Account) -> Place:
    return Place(account.prepared.bucket, PREFIX)


def put(account: Account, **changes: Any) -> None:
    """A claim as another run made it."""
    content = {
        "endpoint": NAME,
        "owner": "other",
        "since": "2026-11-23T09:00:00+00:00",
        "host": "elsewhere/pid:[1]",
        "pid": 7,
        "born": "b:1",
    }
    account.s3.put_object(Bucket=account.prepared.bucket, Key=f"{PREFIX}claim.json", Body=json.dumps({**content, **changes}))


def test_a_claim_is_held_by_one_and_gone_afterwards(account: Account, place: Place) -> None:
    with claimed(account.s3, NAME, place) as held:
        held.check()
        with (
            pytest.raises(EndpointError, match=r"is being changed by process \d+ on .*: wait until it has ended"),
            claimed(account.s3, NAME, place),
        ):
            pytest.fail("two hold it")
        with claimed(account.s3, "another", Place(place.bucket, "hls-foundry/endpoints/another/")):
            assert len(account.objects()) == 2
    assert account.objects() == []
    with claimed(account.s3, NAME, place):
        assert account.objects() == [f"{NAME}/claim.json"]


def test_of_many_at_once_one_gets_it(account: Account, place: Place) -> None:
    got, refused, start = [], [], threading.Barrier(6)

    def attempt() -> None:
        start.wait()
        try:
            with claimed(account.s3, NAME, place):
                got.append(1)
                time.sleep(1.0)
        except EndpointError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=attempt) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 5), refused


def test_a_claim_from_elsewhere_is_respected_until_its_lease_is_over(
    account: Account, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(account)
    with (
        pytest.raises(EndpointError, match=r"by process 7 on elsewhere, since 2026-11-23.* \(where it was killed: \d+ s\)"),
        claimed(account.s3, NAME, place),
    ):
        pytest.fail("taken from a living run")
    monkeypatch.setattr(claims, "LEASE_S", 1.0)
    time.sleep(2.1)
    with claimed(account.s3, NAME, place) as held:
        held.check()
    assert account.objects() == []


def test_a_claim_of_an_ended_process_of_this_machine_is_taken_over_at_once(account: Account, place: Place) -> None:
    ours = claims._whereabouts()
    put(account, host=ours["host"], pid=ours["pid"], born="another boot:1")
    with claimed(account.s3, NAME, place) as held:
        held.check()


def test_a_damaged_claim_is_respected_until_its_lease_is_over(account: Account, place: Place) -> None:
    account.s3.put_object(Bucket=place.bucket, Key=f"{PREFIX}claim.json", Body=b"{")
    with pytest.raises(EndpointError, match="on another machine"), claimed(account.s3, NAME, place):
        pytest.fail("taken")


def test_a_claim_is_kept_by_beats(account: Account, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT_S", 0.2)
    with claimed(account.s3, NAME, place) as held:
        first = held.etag
        deadline = time.monotonic() + 10
        while held.etag == first and time.monotonic() < deadline:
            time.sleep(0.05)
        assert held.etag != first
        held.check()
    assert account.objects() == []


def test_who_has_lost_its_claim_changes_nothing_any_more(account: Account, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT_S", 0.1)
    with claimed(account.s3, NAME, place) as held:
        put(account)
        deadline = time.monotonic() + 10
        while not held.lost and time.monotonic() < deadline:
            time.sleep(0.05)
        with pytest.raises(EndpointError, match="another run has taken over"):
            held.check()
    assert account.objects() == [f"{NAME}/claim.json"], "the other's claim is not ours to remove"


def test_deploying_and_deleting_wait_for_no_one(account: Account) -> None:
    account.endpoints.deploy(account.settings(), account.one("1"))
    before = account.left()
    with claimed(account.s3, NAME, Place(account.prepared.bucket, PREFIX)):
        for attempt in (lambda: account.endpoints.deploy(account.settings(), account.one("2")), lambda: account.endpoints.delete(NAME)):
            with pytest.raises(EndpointError, match="is being changed by process"):
                attempt()
    assert account.left() == before


def test_a_deployment_that_lost_its_claim_leaves_the_endpoint_to_the_other(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    account.endpoints.deploy(account.settings(), account.one("1"))
    monkeypatch.setattr(claims, "BEAT_S", 0.05)

    def taken(task: str, invoker: object) -> None:
        put(account)
        time.sleep(1.0)

    with pytest.raises(EndpointError, match="another run has taken over"):
        account.endpoints.deploy(account.settings(), account.one("2"), check=taken)
    assert "/2-" in account.serves(), "the new one serves, untested, until the other run decides"
    account.s3.delete_object(Bucket=account.prepared.bucket, Key=f"{PREFIX}claim.json")
    with pytest.raises(EndpointError, match="not good"):
        account.endpoints.deploy(account.settings(), account.one("2"), check=_refuse)
    assert "/1-" in account.serves()


def _refuse(task: str, invoker: object) -> None:
    raise EndpointError("not good")


def test_two_deployments_of_one_name_at_once(account: Account) -> None:
    account.states.seconds = 0.5
    outcome: dict[str, str] = {}
    start = threading.Barrier(2)
    models = {number: account.one(number) for number in ("1", "2")}

    def deploy(number: str) -> None:
        start.wait()
        try:
            account.endpoints.deploy(account.settings(), models[number])
            outcome[number] = "won"
        except EndpointError as error:
            outcome[number] = str(error)

    threads = [threading.Thread(target=deploy, args=(number,)) for number in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = next(number for number, said in outcome.items() if said == "won")
    loser = next(said for said in outcome.values() if said != "won")
    assert "is being changed by process" in loser
    assert "\n" not in loser
    assert f"/{winner}-" in account.serves()
    left = account.left()
    assert (len(left["configs"]), len(left["models"]), left["objects"]) == (1, 1, [])
