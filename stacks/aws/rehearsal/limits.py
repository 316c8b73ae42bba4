"""SageMaker's limits of requests and times, as the rehearsal's runtime enforces them.

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html
https://docs.aws.amazon.com/sagemaker/latest/dg/serverless-endpoints.html, https://docs.aws.amazon.com/sagemaker/latest/dg/async-inference.html
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """In bytes and seconds."""

    body: int = 6_291_456
    serverless_body: int = 4 * MIB
    async_inline: int = 128_000
    async_object: int = 2**30
    model_s: float = 60.0
    """How long a container may take for an answer; asynchronous ones an hour (or what the caller asks for)."""
    async_model_s: float = 3600.0
    serverless_idle_s: float = 300.0
    """A serverless endpoint that nobody has called for so long has no container: its next call is a cold start."""
    health_s: float = 120.0
    """How long a container has to answer /ping where its configuration does not say (ContainerStartupHealthCheckTimeoutInSeconds)."""
