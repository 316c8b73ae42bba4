"""What a server withstands: bad bodies, too much at once, clients that go away."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

from hls_foundry.endpoints.bad_requests import BadRequest, bad_requests, send_bad_requests
from tests.serving.conftest import MAX_BODY_MB, QUEUE
from tests.serving.running import RunningServer
from tests.serving.scenes import scene_tiff

MB = 2**20


@pytest.mark.parametrize("request_", bad_requests(), ids=lambda request: request.name)
def test_bad_requests_get_their_documented_errors(server: RunningServer, request_: BadRequest) -> None:
    (refusal,) = send_bad_requests(server.client, [request_])
    assert refusal.problem == ""
    assert refusal.detail
    assert "\n" not in refusal.detail


def test_a_judge_that_cannot_fail_would_prove_nothing(server: RunningServer) -> None:
    good = BadRequest("a good request", scene_tiff(64), (422,))
    (refusal,) = send_bad_requests(server.client, [good])
    assert refusal.problem


def test_a_body_over_the_limit_is_a_413_announced_or_chunked(server: RunningServer) -> None:
    body = bytes(MAX_BODY_MB * MB + 1)

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(body), MB):
            yield body[start : start + MB]

    for content in (body, chunks()):
        reply = server.client.request("POST", "/invocations", content=content, headers={"Content-Type": "image/tiff"})
        assert (reply.status, reply.json()["error"]) == (413, "body_too_large")


def test_two_hundred_requests_at_once_are_answered_or_sent_away_in_bounded_memory(server: RunningServer) -> None:
    body = scene_tiff(512)  # 3 MB: all two hundred are 600 MB
    assert server.client.invoke(body).status == 200
    before, peak, stop = server.resident_mb(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.is_set():
            peak = max(peak, server.resident_mb())
            time.sleep(0.01)

    async def send_all() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits, trust_env=False) as client:
            headers = {"Content-Type": "image/tiff", "Accept": "image/tiff"}
            return await asyncio.gather(*(client.post("/invocations", content=body, headers=headers) for _ in range(200)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    replies = asyncio.run(send_all())
    stop.set()
    watcher.join()
    counts = Counter(reply.status_code for reply in replies)
    assert set(counts) == {200, 503}
    assert counts[200] >= QUEUE
    for reply in replies:
        if reply.status_code == 503:
            assert int(reply.headers["retry-after"]) >= 1
            assert reply.json()["error"] == "busy"
    assert peak - before < 150, f"{before:.0f} MB before, {peak:.0f} MB at most"
    assert server.client.invoke(body).status == 200


def test_ping_answers_while_the_workers_are_busy(server: RunningServer) -> None:
    body = scene_tiff(512)
    busy = [
        threading.Thread(target=httpx.post, args=(f"{server.url}/invocations",), kwargs={"content": body, "timeout": 60}) for _ in range(4)
    ]
    for thread in busy:
        thread.start()
    slowest = 0.0
    while any(thread.is_alive() for thread in busy):
        started = time.perf_counter()
        assert server.client.ping()
        slowest = max(slowest, time.perf_counter() - started)
        time.sleep(0.02)
    assert slowest < 1.5


def _post_and_leave(server: RunningServer, body: bytes, send: int, identity: str) -> None:
    head = f"POST /invocations HTTP/1.1\r\nHost: x\r\nX-Request-Id: {identity}\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + body[:send])
        time.sleep(0.2)


def _logged(server: RunningServer, identity: str, seconds: float = 10.0) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for line in server.log.read_text().splitlines():
            if f"request={identity}" in line:
                return line
        time.sleep(0.05)
    raise AssertionError(f"no log line of {identity}")


def test_a_client_that_leaves_in_the_middle_of_its_body_frees_its_place(server: RunningServer) -> None:
    body = scene_tiff(256)
    for number in range(QUEUE + 3):
        _post_and_leave(server, body, len(body) // 2, f"half-{number}")
    for number in range(QUEUE + 3):
        assert "error=client_gone" in _logged(server, f"half-{number}")
    assert server.client.invoke(scene_tiff(64)).status == 200


def test_the_queued_work_of_clients_that_left_is_dropped(server: RunningServer) -> None:
    slow, quick = scene_tiff(1024), scene_tiff(512)
    holder = threading.Thread(target=httpx.post, args=(f"{server.url}/invocations",), kwargs={"content": slow, "timeout": 60})
    holder.start()
    time.sleep(0.15)
    leavers = [threading.Thread(target=_post_and_leave, args=(server, quick, len(quick), f"queued-{number}")) for number in range(4)]
    for thread in leavers:
        thread.start()
    for thread in [*leavers, holder]:
        thread.join()
    gone = [_logged(server, f"queued-{number}") for number in range(4)]
    assert all("error=client_gone" in line for line in gone)
    assert all("predict_ms" not in line for line in gone)
    assert server.client.invoke(scene_tiff(64)).status == 200
