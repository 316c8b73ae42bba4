"""How much work the server takes on: a bounded number of requests, bounded bytes of bodies, and a queue in front of the workers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from hls_foundry.errors import RequestError
from hls_foundry.serving.settings import ServingSettings
from hls_foundry.serving.spool import Spool

Result = TypeVar("Result")
RETRY_AFTER_S = 1
PIECE_BYTES = 4 * 1024 * 1024


class Admission:
    """Counts the requests inside and the bytes of their bodies; says 503 before a body is read that would not fit."""

    def __init__(self, settings: ServingSettings) -> None:
        self._slots = settings.workers + settings.queue
        self._free = self._slots
        self._bytes_free = settings.pending_bytes
        self._max_body = settings.max_body_bytes

    def enter(self, content_length: int | None) -> Ticket:
        """A place for one request. Raises RequestError: 413 for a body over the limit, 503 where all places or bytes are taken."""
        if content_length is not None and content_length > self._max_body:
            raise self._too_large()
        if self._free <= 0:
            raise RequestError(503, "busy", f"all {self._slots} places are taken (workers and queue): try again")
        if content_length is not None and content_length > self._bytes_free:
            raise RequestError(503, "busy", "the bodies of waiting requests fill the memory set aside for them: try again")
        self._free -= 1
        self._bytes_free -= content_length or 0
        return Ticket(self, content_length or 0)

    def grow(self, ticket: Ticket, size: int) -> None:
        """Account for a body of `size` bytes so far (a chunked one announces no length). Raises RequestError 413 or 503."""
        if size > self._max_body:
            raise self._too_large()
        if (more := size - ticket.reserved) > 0:
            if more > self._bytes_free:
                raise RequestError(503, "busy", "the bodies of waiting requests fill the memory set aside for them: try again")
            self._bytes_free -= more
            ticket.reserved = size

    def leave(self, ticket: Ticket) -> None:
        """Give a place back: the request is done."""
        self._free += 1
        self._bytes_free += ticket.reserved

    def _too_large(self) -> RequestError:
        return RequestError(413, "body_too_large", f"the body is larger than {self._max_body // 2**20} MB: send a smaller scene")


class Ticket:
    """One request's place; give it back by leaving the context."""

    def __init__(self, admission: Admission, reserved: int) -> None:
        self._admission = admission
        self.reserved = reserved

    def grow(self, size: int) -> None:
        self._admission.grow(self, size)

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._admission.leave(self)


def content_length(request: Request) -> int | None:
    """Bytes that the request says its body has; None where it does not say, or not in digits."""
    value = request.headers.get("content-length", "")
    return int(value) if value.isdecimal() else None


async def read_body(request: Request, ticket: Ticket, seconds: float) -> Spool:
    """The body, counted while it arrives. Raises RequestError: 400 empty or late, 413, 503; ClientDisconnect."""
    body = Spool()
    try:
        async with asyncio.timeout(seconds):
            await _fill(body, request, ticket)
    except TimeoutError:
        body.close()
        raise RequestError(400, "slow_body", f"the body did not arrive within {seconds:g} s") from None
    except BaseException:
        body.close()
        raise
    if not body.size:
        raise RequestError(400, "empty_body", "the body is empty: send a GeoTIFF, JSON or a NumPy array")
    return body


async def _fill(body: Spool, request: Request, ticket: Ticket) -> None:
    """Write the body as it arrives; what goes to the disk goes in large pieces and off the event loop."""
    waiting: list[bytes] = []
    size = pending = 0
    async for chunk in request.stream():
        size, pending = size + len(chunk), pending + len(chunk)
        ticket.grow(size)
        waiting.append(chunk)
        if pending >= PIECE_BYTES:
            await asyncio.to_thread(body.write, b"".join(waiting))
            waiting, pending = [], 0
    body.write(b"".join(waiting))


class Cancelled(Exception):
    """The client went away: nobody waits for the rest of the work."""


def _share_cores(workers: int) -> None:
    """On a worker's thread: torch's own threads, which each worker has for itself, are its share of the cores."""
    if workers > 1:
        import torch

        torch.set_num_threads(max(1, torch.get_num_threads() // workers))


class Workers:
    """Runs predictions on `count` threads, first come first served; drops those whose client went away."""

    def __init__(self, count: int) -> None:
        self._turn = asyncio.Semaphore(count)
        self._pool = ThreadPoolExecutor(count, "prediction", _share_cores, (count,))

    async def run(self, work: Callable[[Callable[[], None]], Result], gone: Awaitable[None]) -> Result:
        """`work(checkpoint)` on a thread. `checkpoint()` raises Cancelled there once `gone` is done.

        Raises ClientDisconnect when `gone` comes first: at once while queued, else when the thread has let go of its memory.
        """
        left: asyncio.Future[Any] = asyncio.ensure_future(gone)
        turn: asyncio.Future[Any] = asyncio.ensure_future(self._turn.acquire())
        try:
            await asyncio.wait({turn, left}, return_when=asyncio.FIRST_COMPLETED)
            if left.done():
                raise ClientDisconnect
        except BaseException:
            if not turn.cancel() and not turn.cancelled():
                self._turn.release()
            left.cancel()
            raise
        stop = threading.Event()

        def checkpoint() -> None:
            if stop.is_set():
                raise Cancelled

        future: asyncio.Future[Any] = asyncio.get_running_loop().run_in_executor(self._pool, work, checkpoint)
        future.add_done_callback(lambda _: self._turn.release())
        try:
            await asyncio.wait({future, left}, return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                stop.set()
                await asyncio.wait({future})
            result: Result = future.result()
            return result
        except Cancelled:
            raise ClientDisconnect from None
        finally:
            stop.set()
            left.cancel()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


async def disconnected(request: Request) -> None:
    """Returns when the client of `request` has gone; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
