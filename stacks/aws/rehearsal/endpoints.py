"""The endpoints of the runtime: their states as SageMaker names them, and which containers answer for them.

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_DescribeEndpoint.html#API_DescribeEndpoint_ResponseSyntax
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from stacks.aws.rehearsal.containers import NotHealthy, Surroundings
from stacks.aws.rehearsal.fleet import Fleet
from stacks.aws.rehearsal.limits import Limits
from stacks.aws.rehearsal.orders import Order
from stacks.aws.rehearsal.wire import not_found, validation

log = logging.getLogger("rehearsal")
ROLLBACK_S = 0.2
Key = tuple[str, str]


class Endpoint:
    """One endpoint. `order` is what is in force: what an update asks for only once its containers answer."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.status = "Creating"
        self.reason = ""
        self.pending = ""
        self.fleet: Fleet | None = None
        self.throttled_calls = 0
        self.queue: asyncio.Semaphore | None = None
        """Places for asynchronous invocations."""

    def state(self) -> dict[str, str]:
        return {"status": self.status, "reason": self.reason, "config": self.order.config, "pending": self.pending}


class Endpoints:
    """All of them, by region and name."""

    def __init__(self, surroundings: Surroundings) -> None:
        self.limits = Limits()
        self.surroundings = surroundings
        self._held: dict[Key, Endpoint] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def states(self, region: str) -> dict[str, dict[str, str]]:
        return {name: endpoint.state() for (there, name), endpoint in self._held.items() if there == region}

    def get(self, region: str, name: str, account: str) -> Endpoint:
        """An endpoint, in whatever state. Raises RuntimeFault (ValidationError)."""
        if (region, name) not in self._held:
            raise not_found(name, account)
        return self._held[region, name]

    def serving(self, region: str, name: str, account: str) -> tuple[Endpoint, Fleet]:
        """An endpoint that takes invocations, with its containers. Raises RuntimeFault (ValidationError)."""
        endpoint = self.get(region, name, account)
        if endpoint.fleet is None or endpoint.status in ("Creating", "Failed", "Deleting"):
            raise validation(f"Endpoint {name} of account {account} is not in service: its status is {endpoint.status}.")
        return endpoint, endpoint.fleet

    def deploy(self, order: Order) -> None:
        """Create or update an endpoint; returns at once."""
        endpoint = self._held.get((order.region, order.name))
        if endpoint is None:
            endpoint = self._held[order.region, order.name] = Endpoint(order)
        else:
            endpoint.status = "Updating"
        endpoint.reason, endpoint.pending = "", order.config
        self._spawn(self._deploy(endpoint, order))

    def delete(self, region: str, name: str) -> None:
        """Delete an endpoint; returns at once, it is gone when its calls are answered."""
        if endpoint := self._held.get((region, name)):
            endpoint.status = "Deleting"
            self._spawn(self._delete(endpoint))

    async def close(self) -> None:
        """Stop everything, without waiting for calls in flight."""
        self.surroundings.cloud.closing = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(endpoint.fleet.stop() for endpoint in self._held.values() if endpoint.fleet))

    async def _deploy(self, endpoint: Endpoint, order: Order) -> None:
        started, reason = time.monotonic(), order.fail
        fleet = Fleet(order, self.surroundings, lambda: self.limits)
        try:
            if not reason:
                await fleet.start()
        except NotHealthy as error:
            reason = str(error)
        except Exception as error:
            log.exception("deployment of %s failed", order.name)
            reason = f"Internal failure of the rehearsal: {type(error).__name__}, see its runtime.log"
        await asyncio.sleep(max(0.0, started + order.seconds - time.monotonic()))
        endpoint.pending = ""
        if reason:
            if endpoint.fleet:
                endpoint.status = "RollingBack"
                await asyncio.sleep(ROLLBACK_S)
            endpoint.reason = reason
            endpoint.status = "InService" if endpoint.fleet else "Failed"
            return
        old, endpoint.fleet = endpoint.fleet, fleet
        endpoint.order, endpoint.status, endpoint.reason = order, "InService", ""
        endpoint.queue = asyncio.Semaphore(order.asynchronous["concurrency"] * order.instances) if order.asynchronous else None
        if old is not None:
            await old.drain()

    async def _delete(self, endpoint: Endpoint) -> None:
        if endpoint.fleet is not None:
            await endpoint.fleet.drain()
        del self._held[endpoint.order.region, endpoint.order.name]

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
