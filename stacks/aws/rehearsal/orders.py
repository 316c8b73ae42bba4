"""What the control plane asks the runtime to run: an endpoint configuration with its model, as one JSON document."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Order:
    """One endpoint as it is to be. A rehearsed endpoint has one production variant and one container image."""

    region: str
    account: str
    name: str
    arn: str
    config: str
    """Name of the endpoint configuration."""
    variant: str
    model: str
    image: str
    model_data: str
    """s3://BUCKET/KEY of model.tar.gz; for a multi-model endpoint the prefix under which its archives lie; "" for none."""
    environment: dict[str, str]
    multi_model: bool
    instances: int
    serverless: dict[str, int] | None
    """MemorySizeInMB and MaxConcurrency."""
    asynchronous: dict[str, Any] | None
    """output and failure (s3://…; "" for none), concurrency (of each instance)."""
    health_s: float | None
    fail: str
    """A FailureReason that is to be rehearsed."""
    seconds: float
    """The least time that it takes to come up."""

    def json(self) -> dict[str, Any]:
        return asdict(self)
