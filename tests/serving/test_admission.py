"""The bounds on requests, bytes and the queue, without a model behind them."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
import torch
from starlette.requests import ClientDisconnect

from hls_foundry.errors import RequestError
from hls_foundry.serving.admission import Admission, Workers
from hls_foundry.serving.settings import ServingSettings

MB = 2**20


def admission(**environment: str) -> Admission:
    return Admission(ServingSettings.from_environment({"HLS_QUEUE": "1", "HLS_MAX_BODY_MB": "2", "HLS_PENDING_MB": "3", **environment}))


def test_a_body_over_the_limit_is_refused_by_its_announced_length() -> None:
    with pytest.raises(RequestError) as refusal:
        admission().enter(2 * MB + 1)
    assert refusal.value.status == 413


def test_a_chunked_body_is_refused_once_it_passes_the_limit() -> None:
    with admission().enter(None) as ticket:
        ticket.grow(2 * MB)
        with pytest.raises(RequestError) as refusal:
            ticket.grow(2 * MB + 1)
    assert refusal.value.status == 413


def test_places_and_bytes_come_back() -> None:
    door = admission()
    for _ in range(5):
        with door.enter(MB), door.enter(MB):
            with pytest.raises(RequestError, match="places") as refusal:
                door.enter(1)
            assert refusal.value.status == 503


def test_bodies_together_are_bounded_whether_announced_or_not() -> None:
    door = admission()
    with door.enter(2 * MB):
        with pytest.raises(RequestError, match="memory"):
            door.enter(2 * MB)
        with door.enter(None) as chunked:
            chunked.grow(MB)
            with pytest.raises(RequestError, match="memory") as refusal:
                chunked.grow(MB + 1)
            assert refusal.value.status == 503
    with door.enter(2 * MB):
        pass


def test_a_client_that_leaves_the_queue_frees_its_turn_and_its_work_never_starts() -> None:
    async def scenario() -> list[str]:
        workers, done, blocked = Workers(1), [], threading.Event()
        stays, leaves = asyncio.Event(), asyncio.Event()

        def first(_: object) -> None:
            blocked.wait(5)
            done.append("first")

        one = asyncio.create_task(workers.run(first, stays.wait()))
        await asyncio.sleep(0.05)
        two = asyncio.create_task(workers.run(lambda _: done.append("second"), leaves.wait()))
        three = asyncio.create_task(workers.run(lambda _: done.append("third"), stays.wait()))
        await asyncio.sleep(0.05)
        leaves.set()
        with pytest.raises(ClientDisconnect):
            await two
        blocked.set()
        await asyncio.wait_for(asyncio.gather(one, three), 5)
        workers.close()
        return done

    assert asyncio.run(scenario()) == ["first", "third"]


def test_several_workers_share_the_cores() -> None:
    async def threads(count: int) -> int:
        workers = Workers(count)
        taken = await workers.run(lambda _: torch.get_num_threads(), asyncio.Event().wait())
        workers.close()
        return taken

    cores = asyncio.run(threads(1))
    assert asyncio.run(threads(4)) == max(1, cores // 4)


def test_work_of_a_client_that_left_stops_at_its_next_checkpoint() -> None:
    async def scenario() -> list[int]:
        workers, left, steps = Workers(1), asyncio.Event(), []

        def work(checkpoint) -> None:  # type: ignore[no-untyped-def]
            for step in range(100):
                checkpoint()
                steps.append(step)
                time.sleep(0.02)

        task = asyncio.create_task(workers.run(work, left.wait()))
        await asyncio.sleep(0.1)
        left.set()
        with pytest.raises(ClientDisconnect):
            await task
        assert await asyncio.wait_for(workers.run(lambda _: "free", asyncio.Event().wait()), 5) == "free"
        workers.close()
        return steps

    assert 0 < len(asyncio.run(scenario())) < 50
