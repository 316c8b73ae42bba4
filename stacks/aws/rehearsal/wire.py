"""SageMaker's runtime on the wire: its errors as botocore reads them, and the headers that it hands through.

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html#API_runtime_InvokeEndpoint_Errors
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

from fastapi import Response

from stacks.aws.rehearsal.orders import Order

PREFIX = "x-amzn-sagemaker-"


class RuntimeFault(Exception):
    """An invocation that ends with an error: AWS's name for it, HTTP status and message; `more`: further members of the body."""

    def __init__(self, status: int, name: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status, self.name, self.message, self.more = status, name, message, more

    def response(self) -> Response:
        """With status 413 bare, as AWS sends it."""
        request = {"x-amzn-RequestId": str(uuid.uuid4())}
        if self.status == 413:
            return Response(self.message, 413, request, "text/plain")
        body = json.dumps({"Message": self.message, **self.more})
        return Response(body, self.status, {**request, "x-amzn-ErrorType": self.name}, "application/json")


def validation(message: str) -> RuntimeFault:
    """400, as SageMaker refuses a request that is not right."""
    return RuntimeFault(400, "ValidationError", message)


def not_found(name: str, account: str) -> RuntimeFault:
    """400, as SageMaker answers for an endpoint that there is not."""
    return validation(f"Endpoint {name} of account {account} not found.")


def too_large(limit: int) -> RuntimeFault:
    """413, of a body of more than `limit` bytes."""
    return RuntimeFault(413, "", f"HTTP content length exceeded {limit} bytes.")


def throttled() -> RuntimeFault:
    """429, as SageMaker slows a caller down."""
    return RuntimeFault(429, "ThrottlingException", "Rate exceeded")


def model_error(order: Order, status: int, text: str) -> RuntimeFault:
    """What the container answered, as a ModelError. `status` 0: it gave no answer."""
    side = "client" if 400 <= status < 500 else "server"
    group = f"/aws/sagemaker/Endpoints/{order.name}"
    console = f"https://{order.region}.console.aws.amazon.com/cloudwatch/home?region={order.region}#logEventViewer:group={group}"
    return RuntimeFault(
        424,
        "ModelError",
        f'Received {side} error ({status}) from primary with message "{text}". See {console} in account {order.account} '
        "for more information.",
        OriginalStatusCode=status,
        OriginalMessage=text,
        LogStreamArn=f"arn:aws:logs:{order.region}:{order.account}:log-group:{group}",
    )


def timed_out(order: Order) -> RuntimeFault:
    """424, of a container that did not answer within the time for an invocation."""
    return model_error(
        order, 0, "Your invocation timed out while waiting for a response from container primary. "
        "Review the latency metrics for each container in Amazon CloudWatch, resolve the issue, and try again.",
    )  # fmt: skip


def to_container(headers: Mapping[str, str]) -> dict[str, str]:
    """Of a real-time invocation's headers (names in lower case), those that its container gets."""
    return {name: value for name, value in headers.items() if name in ("content-type", "accept") or name.startswith(PREFIX)}


def to_container_later(headers: Mapping[str, str]) -> dict[str, str]:
    """As `to_container` for an asynchronous invocation, which has Content-Type and Accept in headers of its own."""
    own = {"content-type": f"{PREFIX}content-type", "accept": f"{PREFIX}accept"}
    given = {name: headers[source] for name, source in own.items() if headers.get(source)}
    kept = ("custom-attributes", "inference-id", "target-model")
    return given | {name: value for name, value in headers.items() if name.removeprefix(PREFIX) in kept}
