"""Asynchronous invocations: input from S3 or a small body, the answer or the error to S3.

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpointAsync.html
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stacks.aws.rehearsal.cloud import Cloud, NoObject
from stacks.aws.rehearsal.containers import Surroundings
from stacks.aws.rehearsal.endpoints import Endpoint
from stacks.aws.rehearsal.limits import Limits
from stacks.aws.rehearsal.wire import RuntimeFault, to_container_later, validation

log = logging.getLogger("rehearsal")
PREFIX = "x-amzn-sagemaker-"


@dataclass(frozen=True)
class Accepted:
    """An invocation in the queue: what the caller is told of it."""

    inference_id: str
    output: str
    failure: str  # "" where the endpoint has no S3FailurePath: then nothing is written of a failure


def accept(endpoint: Endpoint, headers: Mapping[str, str], inline: bytes, limits: Limits) -> Accepted:
    """Raises RuntimeFault (ValidationError) for an endpoint that is not asynchronous, and for an input that it does not take."""
    order = endpoint.order
    if order.asynchronous is None:
        raise validation(f"Endpoint {order.name} of account {order.account} is not an asynchronous inference endpoint: use InvokeEndpoint.")
    location = headers.get(f"{PREFIX}inputlocation", "")
    if bool(location) == bool(inline):
        raise validation("Exactly one of InputLocation and Body must be given.")
    if len(inline) > limits.async_inline:
        raise validation(f"Body has {len(inline)} bytes, more than {limits.async_inline}: give InputLocation instead.")
    if location and not location.startswith("s3://"):
        raise validation(f"InputLocation {location} is not an S3 URI.")
    name = str(uuid.uuid4())
    output, failure = order.asynchronous["output"].rstrip("/"), order.asynchronous["failure"].rstrip("/")
    return Accepted(headers.get(f"{PREFIX}inference-id", name), f"{output}/{name}.out", f"{failure}/{name}-error.out" if failure else "")


async def work(
    endpoint: Endpoint, accepted: Accepted, headers: Mapping[str, str], inline: bytes, around: Surroundings, limits: Limits
) -> None:
    """Wait for a place, call a container, and write what comes of it."""
    cloud, inputs = around.cloud, around.home / "containers" / "inputs"
    inputs.mkdir(parents=True, exist_ok=True)
    assert endpoint.queue is not None
    async with endpoint.queue:
        input_file = inputs / uuid.uuid4().hex
        try:
            body = inline or await _download(headers[f"{PREFIX}inputlocation"], input_file, cloud, limits)
            seconds = float(headers.get(f"{PREFIX}invocationtimeoutseconds") or limits.async_model_s)
            assert endpoint.fleet is not None  # as it is now: an update may have come while the input was fetched
            reply = await endpoint.fleet.invoke(body, to_container_later(headers), seconds)
            kind = reply.headers.get("content-type", "application/octet-stream")
            await asyncio.to_thread(cloud.store, accepted.output, reply.content, kind)
        except RuntimeFault as fault:
            if accepted.failure:
                await asyncio.to_thread(cloud.store, accepted.failure, fault.message.encode(), "text/plain")
        except Exception:
            log.exception("asynchronous invocation %s of %s failed", accepted.inference_id, endpoint.order.name)
        finally:
            input_file.unlink(missing_ok=True)


async def _download(uri: str, target: Path, cloud: Cloud, limits: Limits) -> Path:
    try:
        if (size := await asyncio.to_thread(cloud.size, uri)) > limits.async_object:
            raise validation(f"The object at {uri} has {size} bytes, more than {limits.async_object}.")
        await asyncio.to_thread(cloud.fetch, uri, target)
    except NoObject:
        raise validation(f"Failed to download input data from {uri}: there is no such object, or the role may not read it.") from None
    return target
