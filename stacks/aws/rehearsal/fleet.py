"""The containers that serve one endpoint configuration: started together, called in turn, drained before they stop."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx

from stacks.aws.rehearsal.containers import Container, Gone, NotHealthy, Surroundings
from stacks.aws.rehearsal.limits import MIB, Limits
from stacks.aws.rehearsal.multi_model import LoadedModels
from stacks.aws.rehearsal.orders import Order
from stacks.aws.rehearsal.wire import RuntimeFault, model_error, throttled, timed_out, validation

TARGET = "x-amzn-sagemaker-target-model"
DRAIN_S = 75.0
WATCH_S = 0.2
WAIT_FOR_RESTART_S = 2.0
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Fleet:
    """What `order` asks for. `limits()` are those in force."""

    def __init__(self, order: Order, surroundings: Surroundings, limits: Callable[[], Limits]) -> None:
        self.order = order
        self.containers: list[Container] = []
        self.in_flight = 0
        self._surroundings, self._limits = surroundings, limits
        self._models: dict[str, LoadedModels] = {}
        self._turn = itertools.count()
        self._waking = asyncio.Lock()
        self._called = time.monotonic()
        self._watch: asyncio.Task[None] | None = None

    def loaded(self, container: Container) -> list[str]:
        """Target models that a container of a multi-model endpoint holds."""
        return self._models[container.id].targets

    async def start(self) -> None:
        """Start all containers and wait until they answer. Raises NotHealthy, with none of them left."""
        containers = [self._new_container() for _ in range(self.order.instances)]
        seconds = self.order.health_s or self._limits().health_s
        try:
            results = await asyncio.gather(*(container.start(seconds) for container in containers), return_exceptions=True)
            if failures := [result for result in results if isinstance(result, BaseException)]:
                raise failures[0]
        except BaseException:
            await asyncio.gather(*(container.stop() for container in containers))
            raise
        self.containers = containers
        self._called = time.monotonic()
        if self.order.serverless and self._watch is None:
            self._watch = asyncio.create_task(self._watch_serverless(self.order.serverless["memory_mb"]))

    async def drain(self) -> None:
        """Let the calls in flight end, then stop."""
        deadline = time.monotonic() + DRAIN_S
        while self.in_flight and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        await self.stop()

    async def stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        await asyncio.gather(*(container.stop() for container in self.containers))

    async def invoke(self, body: bytes | Path, headers: dict[str, str], seconds: float) -> httpx.Response:
        """One call of a container. Raises RuntimeFault: ModelError for what it answers that is no success, and for no answer at all."""
        if self.order.multi_model != (TARGET in headers):
            raise validation(
                "The model ID (TargetModel) is required for an endpoint with multi-model mode." if self.order.multi_model
                else "Invoke model with TargetModel is supported only by multi-model endpoints."
            )  # fmt: skip
        if self.order.serverless and self.in_flight >= self.order.serverless["concurrency"]:
            raise throttled()
        self.in_flight += 1
        self._called = time.monotonic()
        try:
            if self.order.serverless and not self.containers:
                await self._wake()
            return await self._call(await self._pick(), body, headers, seconds)
        finally:
            self.in_flight -= 1
            self._called = time.monotonic()

    async def _call(self, container: Container, body: bytes | Path, headers: dict[str, str], seconds: float) -> httpx.Response:
        try:
            path = "/invocations"
            if self.order.multi_model:
                path = await self._models[container.id].path(headers[TARGET], seconds)
            reply = await container.post(path, body, headers, seconds)
        except TimeoutError:
            raise timed_out(self.order) from None
        except Gone:
            raise model_error(self.order, 0, "The connection to the container was closed before it answered.") from None
        if reply.status_code >= 300:
            raise model_error(self.order, reply.status_code, reply.text)
        return reply

    async def _pick(self) -> Container:
        """The next healthy container; waits a moment for one that is being started again."""
        deadline = time.monotonic() + WAIT_FOR_RESTART_S
        while True:
            if healthy := [container for container in self.containers if container.healthy]:
                return healthy[next(self._turn) % len(healthy)]
            if time.monotonic() > deadline:
                raise RuntimeFault(503, "ServiceUnavailable", "The service is currently unavailable: no healthy container.")
            await asyncio.sleep(0.02)

    def _new_container(self) -> Container:
        container = Container(self.order, self._surroundings)
        models = self._models[container.id] = LoadedModels(container, self._surroundings.cloud)
        container.ended = models.forget  # type: ignore[method-assign]
        return container

    # -- serverless

    async def _wake(self) -> None:
        """A cold start. Raises RuntimeFault."""
        async with self._waking:
            if self.containers:
                return
            try:
                await self.start()
            except NotHealthy as error:
                raise model_error(self.order, 500, str(error)) from None

    async def _watch_serverless(self, memory_mb: int) -> None:
        """Stop the container when nobody calls; kill one that takes more memory than it may, as Lambda underneath does."""
        while True:
            await asyncio.sleep(WATCH_S)
            if self.containers and not self.in_flight and time.monotonic() - self._called > self._limits().serverless_idle_s:
                idle, self.containers = self.containers, []
                await asyncio.gather(*(container.stop() for container in idle))
            for container in self.containers:
                if (used := _resident_mb(container.pid)) > memory_mb:
                    container.log.put(f"[rehearsal] out of memory: {used:.0f} MB of {memory_mb} MB in use, the container is killed")
                    with suppress(ProcessLookupError):
                        os.kill(container.pid, 9)


def _resident_mb(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE / MIB
    except (OSError, IndexError):
        return 0.0
