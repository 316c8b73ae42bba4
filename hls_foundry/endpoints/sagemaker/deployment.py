"""One deployment, phase by phase, so that a run that was killed in any of them is completed by the next one.

What has to be known for that is kept where it cannot get lost: names follow from content (resources.py), and the endpoint's tag
`hls-foundry-passed` names the configuration that last passed its check. As long as another one answers, an update is under way; whoever
comes next finishes it, or goes back to the one named.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from hls_foundry.endpoints.aws import Aws
from hls_foundry.endpoints.sagemaker.autoscaling import remove_scaling, set_scaling
from hls_foundry.endpoints.sagemaker.control import ControlPlane
from hls_foundry.endpoints.sagemaker.failures import explain, last_lines
from hls_foundry.endpoints.sagemaker.model_copies import copy_models, remove_copies
from hls_foundry.endpoints.sagemaker.resources import (
    TAG_KIND,
    TAG_PASSED,
    TAG_SCALING,
    Place,
    Plan,
    bucket_and_key,
    keeps_instance_count,
    parse_scaling,
    variant_of,
)
from hls_foundry.endpoints.sagemaker.waiting import Pace, Report, wait_while
from hls_foundry.endpoints.settings import TAG, Autoscaling
from hls_foundry.errors import EndpointError

log = logging.getLogger(__name__)

CHANGING = frozenset({"Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting"})
BROKEN = ("OutOfService", "UpdateRollbackFailed")
GONE = "gone"
CLOCK_SKEW = timedelta(minutes=2)


class StillChanging(EndpointError):
    """The endpoint did not settle in time: nothing is undone, the next run goes on waiting."""


@dataclass(frozen=True)
class Waiting:
    """How long an endpoint may take to settle (seconds), how often it is asked, and who is told."""

    seconds: float
    pace: Pace
    report: Report | None = None


@dataclass(frozen=True)
class Found:
    """An endpoint of ours as it was found: in service."""

    arn: str
    config: str
    tags: dict[str, str]


class EndpointChange:
    """What deploying and deleting have in common: one endpoint, its claim held by the caller."""

    def __init__(self, aws: Aws, name: str, control: ControlPlane, waiting: Waiting) -> None:
        self.aws, self.name, self.control, self.waiting = aws, name, control, waiting

    def settle(self) -> dict[str, Any] | None:
        """The endpoint's description once it is not changing any more; None where there is none.

        Raises EndpointError; StillChanging after the time given.
        """
        latest: list[dict[str, Any] | None] = [None]

        def ask() -> str:
            latest[0] = self.control.endpoint(self.name)
            return str(latest[0]["EndpointStatus"]) if latest[0] else GONE

        try:
            wait_while(ask, CHANGING, seconds=self.waiting.seconds, pace=self.waiting.pace, report=self.waiting.report)
        except TimeoutError as error:
            raise StillChanging(
                f"endpoint '{self.name}' is still {error} after {self.waiting.seconds:.0f} s: run again to go on waiting, or delete it"
            ) from None
        return latest[0]

    def own(self, description: dict[str, Any]) -> dict[str, str]:
        """The endpoint's tags. Raises EndpointError where it is not ours."""
        tags = self.control.tags(description["EndpointArn"])
        if tags.get(TAG) != self.name:
            raise EndpointError(
                f"endpoint '{self.name}' exists and was not made by HLS Foundry (it has no tag {TAG}={self.name}): choose another name"
            )
        return tags

    def remove_endpoint(self, kind: str) -> None:
        """Its autoscaling, and the endpoint, once it is settled; returns when it is gone. Raises EndpointError."""
        if self.settle() is None:
            remove_scaling(self.aws, self.name, kind)
            return
        remove_scaling(self.aws, self.name, kind)
        self.control.delete_endpoint(self.name)
        left = self.settle()
        if left is not None:
            raise EndpointError(f"endpoint '{self.name}' is {left['EndpointStatus']} after its deletion: run again in a minute")

    def remove_resources(self, *, keep: str | None) -> None:
        """All configurations and models of ours but `keep` and its model. Raises EndpointError."""
        kept = self.control.config(keep) if keep else None
        model = variant_of(kept)["ModelName"] if kept else None
        for config in self.control.configs_of(self.name):
            if config.name != keep:
                self.control.delete_config(config.name)
        for owned in self.control.models_of(self.name):
            if owned.name != model:
                self.control.delete_model(owned.name)

    def remove_copies(self, home: Place, *, keep: str | None) -> None:
        """Copies of archives but for those that the configuration `keep` serves. Raises EndpointError."""
        kept = self.control.config(keep) if keep else None
        model = self.control.model(variant_of(kept)["ModelName"]) if kept else None
        url = model["PrimaryContainer"]["ModelDataUrl"] if model else ""
        remove_copies(self.aws.client("s3"), self.name, home, keep=bucket_and_key(url)[1] if url else "")


class Deployment(EndpointChange):
    """Brings an endpoint to `plan`; `check` is called once it is in service and raises where it must not stay so."""

    def __init__(self, aws: Aws, plan: Plan, control: ControlPlane, waiting: Waiting, check: Callable[[], None]) -> None:
        super().__init__(aws, plan.endpoint, control, waiting)
        self.plan, self.check = plan, check
        self.began = datetime.now(UTC) - CLOCK_SKEW

    def run(self) -> None:
        """Raises EndpointError, and what the check raises; then the configuration before answers again, or nothing is left."""
        found = self._found()
        old = self._passed(found) if found else None
        try:
            self._make()
            self._bring_up(found)
            self.check()
        except StillChanging:
            raise
        except BaseException as error:
            self._undo(old, error)
            raise
        self._finish()

    # -- what is there

    def _found(self) -> Found | None:
        """The endpoint in service, after waiting for what is under way and clearing away what has failed."""
        first = self.control.endpoint(self.name)
        if first is None:
            return None
        self.own(first)
        description = self.settle()
        if description is None:
            return None
        tags, status = self.own(description), description["EndpointStatus"]
        if status == "Failed":
            log.info("deploy      %s: %s; it is made again", self.name, description.get("FailureReason", "Failed"))
            self.remove_endpoint(self.plan.kind)
            return None
        if status in BROKEN:
            raise EndpointError(f"endpoint '{self.name}' is {status}: {description.get('FailureReason', '')} Delete it, then deploy again")
        if tags.get(TAG_KIND) != self.plan.kind:
            raise EndpointError(
                f"endpoint '{self.name}' is {tags.get(TAG_KIND)}, and SageMaker does not turn it into {self.plan.kind}: "
                "delete it first, or choose another name"
            )
        return Found(description["EndpointArn"], description["EndpointConfigName"], tags)

    def _passed(self, found: Found) -> str | None:
        """The configuration to go back to; None where none has passed a check yet."""
        passed = found.tags.get(TAG_PASSED)
        if passed and self.control.config(passed) is None:
            raise EndpointError(
                f"endpoint '{self.name}': its configuration {passed} is gone, so that an update could not go back: "
                "delete the endpoint, then deploy again"
            )
        return passed or None

    # -- what is to be there

    def _make(self) -> None:
        copy_models(self.aws.client("s3"), self.name, self.plan.copies)
        self.control.ensure_model(self.name, self.plan.model)
        self.control.ensure_config(self.name, self.plan.config)

    def _bring_up(self, found: Found | None) -> None:
        """Returns with the plan's configuration in service. Raises EndpointError that says why it is not."""
        target = self.plan.config_name
        if found is None:
            self.control.create_endpoint(self.name, target, self.plan.tags)
        elif found.config != target:
            self._update(found.config)
        description = self.settle()
        if description is None:
            raise EndpointError(f"endpoint '{self.name}' was deleted by somebody else while it was being deployed: run again")
        if description["EndpointStatus"] != "InService" or description["EndpointConfigName"] != target:
            verb = "created" if found is None else "updated"
            reason = str(description.get("FailureReason", ""))
            raise EndpointError(f"endpoint '{self.name}' was not {verb}: {self._explained(reason)}")

    def _update(self, current: str) -> None:
        """Start the update. Autoscaling has to go first where the instances change, else SageMaker refuses."""
        config = self.control.config(current)
        old = config or {"ProductionVariants": [{}]}
        scaling = self._scaling_of(config)
        keep = keeps_instance_count(old, scaling, self.plan)
        if scaling is not None and variant_of(old).get("InstanceType") != variant_of(self.plan.config).get("InstanceType"):
            set_scaling(self.aws, self.name, self.plan.kind, None)
        self.control.update_endpoint(self.name, self.plan.config_name, keep_count=keep)

    def _finish(self) -> None:
        """The new configuration has passed: say so, then scale, then remove what was before."""
        description = self.control.endpoint(self.name)
        if description is None or description["EndpointConfigName"] != self.plan.config_name:
            raise EndpointError(f"endpoint '{self.name}' was changed by somebody else during its check: run again")
        self.control.tag_endpoint(description["EndpointArn"], {**self.plan.tags, TAG_PASSED: self.plan.config_name})
        set_scaling(self.aws, self.name, self.plan.kind, self.plan.autoscaling)
        self.remove_resources(keep=self.plan.config_name)
        if self.plan.copies:
            self.remove_copies(self.plan.home, keep=self.plan.config_name)

    # -- going back

    def _undo(self, old: str | None, cause: BaseException) -> None:
        """Back to `old`, or to nothing. Raises EndpointError (naming `cause`) where that fails."""
        try:
            if old is None:
                description = self.control.endpoint(self.name)
                if description is not None:
                    self.own(description)
                    self.remove_endpoint(self.plan.kind)
            else:
                self._go_back(old)
            if self.plan.copies:
                self.remove_copies(self.plan.home, keep=old)
            self.remove_resources(keep=old)
        except EndpointError as error:
            raise EndpointError(f"{cause}; undoing that failed as well ({error}): run it again, or delete the endpoint") from cause

    def _go_back(self, old: str) -> None:
        description = self.settle()
        if description is None:
            raise EndpointError(f"endpoint '{self.name}' is gone")
        if description["EndpointConfigName"] != old:
            log.info("deploy      %s: going back to %s", self.name, old)
            self._remove_scaling_of_other_instances(description["EndpointConfigName"], old)
            self.control.update_endpoint(self.name, old, keep_count=False)
            description = self.settle()
        if description is None or description["EndpointConfigName"] != old or description["EndpointStatus"] != "InService":
            reason = self._explained(str((description or {}).get("FailureReason", "")))
            raise EndpointError(f"endpoint '{self.name}' did not come back with {old}: {reason}")
        set_scaling(self.aws, self.name, self.plan.kind, self._scaling_of(self.control.config(old)))

    def _remove_scaling_of_other_instances(self, current: str, old: str) -> None:
        here, there = self.control.config(current), self.control.config(old)
        if here and there and variant_of(here).get("InstanceType") != variant_of(there).get("InstanceType"):
            set_scaling(self.aws, self.name, self.plan.kind, None)

    def _scaling_of(self, config: dict[str, Any] | None) -> Autoscaling | None:
        """What the configuration's tags say of its autoscaling."""
        return parse_scaling(self.control.tags(config["EndpointConfigArn"]).get(TAG_SCALING, "")) if config else None

    def _explained(self, reason: str) -> str:
        return explain(reason, last_lines(self.aws.client("logs"), self.name, self.began), self.name)
