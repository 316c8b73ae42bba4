"""Deploys or deletes in processes that end themselves, by SIGKILL, right after the n-th call that changes something in AWS.

    python -m tests.endpoints.sagemaker.killed_driver

One case a line on standard input, as JSON: {"do": "deploy" | "delete", "version", "kind", "check": "pass" | "fail", "kill_after"}; one line
back with how the process ended (negative: by that signal) and the calls that it made. Cases run in forks: only one interpreter starts.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from hls_foundry.endpoints.aws import Aws
from hls_foundry.endpoints.sagemaker.endpoints import ModelVersion, SageMakerEndpoints
from hls_foundry.endpoints.settings import SageMakerSettings
from hls_foundry.errors import EndpointError
from tests.endpoints.sagemaker.accounts import QUICK, Unreached

READS = ("Describe", "List", "Get", "Head")
SERVICES = ("sagemaker", "s3", "application-autoscaling", "cloudwatch")


def main() -> None:
    aws = Aws()
    for service in (*SERVICES, "sagemaker-runtime", "logs"):
        aws.client(service)  # made before the forks, once for all
    for line in sys.stdin:
        case = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _count_calls(aws, writing, case["kill_after"])
            os._exit(_run(aws, case))
        os.close(writing)
        with os.fdopen(reading) as made:
            calls = made.read().split()
        _, status = os.waitpid(child, 0)
        print(json.dumps({"ended": os.waitstatus_to_exitcode(status), "calls": calls}), flush=True)


def _count_calls(aws: Aws, writing: int, kill_after: int | None) -> None:
    made = []

    def after(model: Any, **_: Any) -> None:
        if model.name.startswith(READS):
            return
        made.append(model.name)
        os.write(writing, f"{model.name} ".encode())
        if len(made) == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    for service in SERVICES:
        aws.client(service).meta.events.register("after-call", after)


def _run(aws: Aws, case: dict[str, Any]) -> int:
    endpoints = SageMakerEndpoints(aws, pace=QUICK, provision_s=20, connect=lambda *_: Unreached())
    settings = SageMakerSettings.model_validate(case["settings"])

    def check(task: str, invoker: Any) -> None:
        if case["check"] == "fail":
            raise EndpointError("not good")

    try:
        if case["do"] == "delete":
            endpoints.delete(settings.name, objects=True)
        else:
            endpoints.deploy(settings, {task: ModelVersion(**fields) for task, fields in case["models"].items()}, check=check)
    except EndpointError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    main()
