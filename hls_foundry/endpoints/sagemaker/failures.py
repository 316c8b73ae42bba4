"""Why an endpoint failed: SageMaker's FailureReason, and what its container logged last.

https://docs.aws.amazon.com/sagemaker/latest/dg/logging-cloudwatch.html
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any

from hls_foundry.endpoints.aws import error_code

log = logging.getLogger(__name__)

STREAMS, LINES = 4, 20
LOG_GROUP = "/aws/sagemaker/Endpoints/{name}"


def last_lines(logs: Any, name: str, since: datetime) -> list[str]:
    """The last lines that the endpoint's containers logged after `since`, oldest first; none where no log is there or may be read."""
    from botocore.exceptions import BotoCoreError, ClientError

    group, start = LOG_GROUP.format(name=name), int(since.timestamp() * 1000)
    found: list[tuple[int, str]] = []
    try:
        streams = logs.describe_log_streams(logGroupName=group, orderBy="LastEventTime", descending=True, limit=STREAMS)["logStreams"]
        for stream in streams:
            events = logs.get_log_events(
                logGroupName=group, logStreamName=stream["logStreamName"], startTime=start, limit=LINES, startFromHead=False
            )["events"]
            found += [(event["timestamp"], event["message"].rstrip()) for event in events]
    except ClientError as error:
        if error_code(error) != "ResourceNotFoundException":
            log.warning("deploy      the log %s cannot be read (%s)", group, error_code(error))
    except BotoCoreError as error:
        log.warning("deploy      the log %s cannot be read (%s)", group, type(error).__name__)
    return [line for _, line in sorted(found, key=lambda event: event[0]) if line][-LINES:]


def explain(reason: str, lines: list[str], name: str) -> str:
    """`reason` and the line of the log that says most, as one line; the others go to our log."""
    said = " ".join(reason.split()).rstrip(".") or "SageMaker gives no reason"
    if not lines:
        return said
    for line in lines:
        log.info("container   %s", line)
    telling = [line for line in lines if any(word in line.lower() for word in ("error", "cannot", "failed", "exception", "killed"))]
    return f"{said}; its container said last: {' '.join((telling or lines)[-1].split())[:400]} (CloudWatch {LOG_GROUP.format(name=name)})"
