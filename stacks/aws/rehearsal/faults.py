"""What can be made to go wrong in a rehearsal: by tags on CreateEndpoint, and from outside while it runs.

Tags of an endpoint, read at CreateEndpoint and at each UpdateEndpoint:
    hls-rehearsal-fail: REASON       the endpoint fails (an update rolls back) with REASON as its FailureReason
    hls-rehearsal-seconds: SECONDS   the endpoint is Creating or Updating for at least that long; without it, as long as its containers take

Credentials: see `credentials.py` (EXPIRED_KEY_ID, or any key with the session token "expired").
"""

from __future__ import annotations

from typing import Any

from stacks.aws.rehearsal.credentials import REGION
from stacks.aws.rehearsal.link import call

FAIL_TAG, SECONDS_TAG = "hls-rehearsal-fail", "hls-rehearsal-seconds"


class Faults:
    """Breaks things in the runtime at `url`. Each method raises EndpointError for an endpoint that there is not."""

    def __init__(self, url: str, region: str = REGION) -> None:
        self._url, self._region = url, region

    def throttle(self, endpoint: str, calls: int) -> None:
        """Answer the next `calls` invocations of `endpoint` with ThrottlingException."""
        self._post("throttle", endpoint=endpoint, calls=calls)

    def kill_container(self, endpoint: str) -> int:
        """kill -9 a container of the endpoint, which SageMaker then starts again; returns its process id."""
        return int(self._post("kill", endpoint=endpoint)["pid"])

    def containers(self, endpoint: str) -> list[dict[str, Any]]:
        """The endpoint's containers: id, pid, healthy, starts (how often its process was started), models (multi-model: loaded ones)."""
        found: list[dict[str, Any]] = self._post("containers", endpoint=endpoint)["containers"]
        return found

    def set_limits(self, **limits: float) -> dict[str, float]:
        """Change limits of the runtime (`limits.Limits`), such as model_s=1; returns those that were in force before."""
        return dict(call(self._url, "limits", limits))

    def _post(self, what: str, **content: Any) -> Any:
        return call(self._url, what, {"region": self._region, **content})
