"""The rehearsal's SageMaker runtime: takes invocations over HTTP as AWS does, and hands them to containers that it starts.

    python -m stacks.aws.rehearsal.runtime FD FOLDER

FD: the inherited listening socket. HLS_REHEARSAL_CONTROL: URL of the control plane.
https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_Operations_Amazon_SageMaker_Runtime.html
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import uvicorn
from fastapi import FastAPI, Request, Response

from stacks.aws.rehearsal import asynchronous
from stacks.aws.rehearsal.cloud import Cloud
from stacks.aws.rehearsal.containers import Surroundings
from stacks.aws.rehearsal.control_routes import add_control_routes
from stacks.aws.rehearsal.credentials import ACCOUNT, Caller, Verdict, caller_of, refusal
from stacks.aws.rehearsal.endpoints import Endpoints
from stacks.aws.rehearsal.engines import ENGINE
from stacks.aws.rehearsal.link import PREFIX
from stacks.aws.rehearsal.orders import Order
from stacks.aws.rehearsal.wire import RuntimeFault, model_error, throttled, to_container, too_large, validation


class Runtime:
    """What the routes share."""

    def __init__(self, surroundings: Surroundings) -> None:
        self.endpoints = Endpoints(surroundings)
        self.surroundings = surroundings
        self._later: set[asyncio.Task[None]] = set()
        self._control = httpx.AsyncClient(base_url=surroundings.control_url, trust_env=False)

    async def resume(self) -> None:
        """Run what the control plane knows of: nothing at the first start, all endpoints after the runtime alone has died."""
        reply = await self._control.get(f"{PREFIX}/orders", timeout=30)
        for order in reply.json():
            self.endpoints.deploy(Order(**order))

    async def caller(self, request: Request) -> tuple[Caller, Verdict]:
        caller = caller_of(request.headers, request.url.query)
        verdict = caller.verdict()
        if verdict is None:
            verdict = (await self._control.get(f"{PREFIX}/credentials/{caller.key_id}")).json()["verdict"]
        return caller, verdict

    async def invoke(self, caller: Caller, name: str, request: Request) -> Response:
        """InvokeEndpoint. Raises RuntimeFault."""
        endpoint, fleet = self.endpoints.serving(caller.region, name, ACCOUNT)
        order, limits = endpoint.order, self.endpoints.limits
        if order.asynchronous is not None:
            raise validation(f"Endpoint {name} of account {ACCOUNT} is an asynchronous inference endpoint: use InvokeEndpointAsync.")
        limit = limits.serverless_body if order.serverless else limits.body
        body = await read_body(request, limit)
        if endpoint.throttled_calls > 0:
            endpoint.throttled_calls -= 1
            raise throttled()
        # An update may have come while the body was read: the containers of now, which are not yet draining.
        _, fleet = self.endpoints.serving(caller.region, name, ACCOUNT)
        reply = await fleet.invoke(body, to_container(request.headers), limits.model_s)
        if len(reply.content) > limit:
            raise model_error(order, 500, f"the response has {len(reply.content)} bytes, more than {limit}")
        headers = {"x-Amzn-Invoked-Production-Variant": order.variant, "Content-Type": reply.headers.get("content-type", "")}
        if attributes := reply.headers.get("x-amzn-sagemaker-custom-attributes"):
            headers["X-Amzn-SageMaker-Custom-Attributes"] = attributes
        return Response(reply.content, 200, headers)

    async def invoke_later(self, caller: Caller, name: str, request: Request) -> Response:
        """InvokeEndpointAsync. Raises RuntimeFault."""
        endpoint, _ = self.endpoints.serving(caller.region, name, ACCOUNT)
        limits = self.endpoints.limits
        inline = await read_body(request, limits.body)
        headers = dict(request.headers)
        accepted = asynchronous.accept(endpoint, headers, inline, limits)
        if endpoint.throttled_calls > 0:
            endpoint.throttled_calls -= 1
            raise throttled()
        task = asyncio.create_task(asynchronous.work(endpoint, accepted, headers, inline, self.surroundings, limits))
        self._later.add(task)
        task.add_done_callback(self._later.discard)
        told = {"X-Amzn-SageMaker-OutputLocation": accepted.output}
        if accepted.failure:
            told["X-Amzn-SageMaker-FailureLocation"] = accepted.failure
        return Response(json.dumps({"InferenceId": accepted.inference_id}), 202, told, "application/json")

    async def close(self) -> None:
        for task in list(self._later):
            task.cancel()
        await self.endpoints.close()
        await self._control.aclose()


async def read_body(request: Request, limit: int) -> bytes:
    """The body. Raises RuntimeFault 413 as soon as it is too large."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise too_large(limit)
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > limit:
            raise too_large(limit)
        pieces.append(piece)
    return b"".join(pieces)


def create_app(surroundings: Surroundings) -> FastAPI:
    """The application. Raises nothing: errors go out in AWS's wire format."""
    runtime = Runtime(surroundings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        warm = asyncio.create_task(asyncio.to_thread(surroundings.cloud.client, "s3"))  # its import takes most of a second
        await runtime.resume()  # before it answers: endpoints that it does not name are taken for deleted
        yield
        warm.cancel()
        await runtime.close()

    app = FastAPI(title="SageMaker runtime, rehearsed", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(RuntimeFault)
    async def fault(_: Request, error: RuntimeFault) -> Response:
        return error.response()

    @app.exception_handler(Exception)
    async def defect(_: Request, error: Exception) -> Response:
        return RuntimeFault(500, "InternalFailure", f"The rehearsal failed: {type(error).__name__}, see its runtime.log").response()

    @app.post("/endpoints/{name}/{kind}")
    async def invoke(name: str, kind: str, request: Request) -> Response:
        caller, verdict = await runtime.caller(request)
        if verdict:
            refused = refusal(verdict, "sagemaker-runtime")
            return Response(refused.body, refused.status, refused.headers)
        if kind == "invocations":
            return await runtime.invoke(caller, name, request)
        if kind == "async-invocations":
            return await runtime.invoke_later(caller, name, request)
        raise RuntimeFault(404, "UnknownOperationException", f"{kind} is not rehearsed")

    add_control_routes(app, runtime.endpoints)
    return app


def main(arguments: list[str]) -> int:
    """Serve until SIGTERM."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    listening, folder = socket.socket(fileno=int(arguments[0])), Path(arguments[1])
    control = os.environ["HLS_REHEARSAL_CONTROL"]
    host, port = listening.getsockname()
    app = create_app(Surroundings(folder, Cloud(control), control, f"http://{host}:{port}", os.environ.get(ENGINE, "")))
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1, timeout_keep_alive=75)
    uvicorn.Server(config).run(sockets=[listening])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
