"""Draws an endpoint: what it is, which version answers there, and how to call it."""

from __future__ import annotations

from collections.abc import Sequence

from hls_foundry.endpoints.deployed import Deployed
from hls_foundry.report import Section, commands, facts


def rehearsed(endpoint: Deployed) -> bool:
    """Whether it was deployed on the rehearsal's stand-in of SageMaker: then commands need --rehearse."""
    return endpoint.target == "sagemaker" and "//127.0.0.1" in endpoint.url


def endpoint_sections(endpoint: Deployed, calls: Sequence[str]) -> list[Section]:
    """`calls`: the lines of Deployed.commands. Its state is that of now, not of when the run ended."""
    known = {
        "name": endpoint.name,
        "where": {"local": "this machine", "sagemaker": "SageMaker"}.get(endpoint.target, endpoint.target),
        "kind": endpoint.kind.replace("_", " "),
        "address": endpoint.url,
        "model version": endpoint.model_version,
        "SHA-256 of what it serves": endpoint.sha256,
        "since": endpoint.since,
    }
    known |= {
        name: getattr(endpoint, name) for name in ("region", "arn", "config", "status", "problem", "output") if getattr(endpoint, name, "")
    }
    return [Section("Endpoint", facts(known) + "<p>How to call it, and how to delete it:</p>" + commands(calls))]
