"""Following and stopping a run on SageMaker: requests and answers are checked against AWS's own description of its API."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import boto3
import pytest
import zenml.client
from botocore.stub import Stubber
from zenml.enums import ExecutionStatus

from cli import runs
from cli.on_sagemaker import failed_job, follow, problem_of, stop
from cli.on_slurm import StepFailed
from hls_foundry.errors import ConfigError

ARN = "arn:aws:sagemaker:eu-central-1:123456789012:pipeline/train-1/execution/abc"


class Record:
    """A run as ZenML has it: each look gives the next state."""

    def __init__(self, *states: dict[str, str], status: ExecutionStatus = ExecutionStatus.RUNNING) -> None:
        self.states, self.status = list(states), status
        self.id, self.name = uuid4(), "flood-train-1"

    def run(self) -> Any:
        now = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        steps = {name: SimpleNamespace(status=ExecutionStatus(status), exception_info=None) for name, status in now.items()}
        if steps and all(step.status == ExecutionStatus.COMPLETED for step in steps.values()):
            self.status = ExecutionStatus.COMPLETED
        metadata = {"pipeline_execution_arn": ARN}
        return SimpleNamespace(id=self.id, name=self.name, status=self.status, steps=steps, run_metadata=metadata)

    def update(self, run_id: Any, given: Any) -> None:
        self.status = given.status


class Aws:
    """Gives the stubbed client."""

    def __init__(self, client: Any) -> None:
        self.client = lambda service: client


@pytest.fixture
def sagemaker() -> Iterator[tuple[Any, Stubber]]:
    client = boto3.client("sagemaker", region_name="eu-central-1", aws_access_key_id="a", aws_secret_access_key="b")
    with Stubber(client) as stubber:
        yield Aws(client), stubber
        stubber.assert_no_pending_responses()


def zenml_has(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SimpleNamespace(update_run=record.update)
    client = SimpleNamespace(get_pipeline_run=lambda run_id: record.run(), zen_store=store)
    monkeypatch.setattr(zenml.client, "Client", lambda: client)


def described(status: str, **more: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    answer = {"PipelineExecutionArn": ARN, "PipelineExecutionStatus": status, **more}
    return "describe_pipeline_execution", answer, {"PipelineExecutionArn": ARN}


def test_each_change_of_a_step_is_told_once_until_the_run_has_ended(
    sagemaker: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    aws, stubber = sagemaker
    record = Record({}, {"ingest": "running"}, {"ingest": "running"}, {"ingest": "completed"})
    zenml_has(record, monkeypatch)
    for _ in range(3):
        stubber.add_response(*described("Executing"))
    pauses: list[float] = []
    ended = follow(SimpleNamespace(id=record.id), aws, pause=pauses.append)  # type: ignore[arg-type]
    assert ended is not None
    assert problem_of(ended, aws) is None
    assert capsys.readouterr().err.split() == ["ingest", "running", "ingest", "completed"]
    assert len(pauses) == 3


def test_a_job_that_never_started_ends_the_run_with_what_sagemaker_says(sagemaker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    aws, stubber = sagemaker
    record = Record({"ingest": "completed", "validate": "initializing"})
    zenml_has(record, monkeypatch)
    reason = "ClientError: ResourceLimitExceeded: the account-level limit 'ml.g5.xlarge for training job usage' is 0\n Instances"
    steps = [
        {"StepName": "fine_tune", "StepStatus": "Failed", "FailureReason": reason},
        {"StepName": "split", "StepStatus": "Succeeded"},
    ]
    for _ in range(2):
        stubber.add_response(*described("Failed", FailureReason="Step failure: one or more steps failed"))
    stubber.add_response("list_pipeline_execution_steps", {"PipelineExecutionSteps": steps}, {"PipelineExecutionArn": ARN})
    ended = follow(SimpleNamespace(id=record.id), aws, pause=pytest.fail)  # type: ignore[arg-type]
    assert ended is not None
    assert ended.status == ExecutionStatus.FAILED
    problem = problem_of(ended, aws)
    assert isinstance(problem, StepFailed)
    assert str(problem).startswith("fine_tune: ClientError: ResourceLimitExceeded")
    assert "\n" not in str(problem)


def test_aws_that_does_not_answer_is_told_once_and_asked_on(
    sagemaker: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    aws, stubber = sagemaker
    record = Record({"ingest": "running"}, {"ingest": "running"}, {"ingest": "running"}, {"ingest": "completed"})
    zenml_has(record, monkeypatch)
    for _ in range(2):
        stubber.add_client_error("describe_pipeline_execution", "ExpiredTokenException", "expired")
    stubber.add_response(*described("Executing"))
    assert follow(SimpleNamespace(id=record.id), aws, pause=lambda seconds: None) is not None  # type: ignore[arg-type]
    assert capsys.readouterr().err.count("have expired") == 1


def test_ctrl_c_ends_the_watching_and_not_the_run(
    sagemaker: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    aws, stubber = sagemaker
    record = Record({"ingest": "running"})
    zenml_has(record, monkeypatch)
    stubber.add_response(*described("Executing"))

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    assert follow(SimpleNamespace(id=record.id), aws, pause=interrupted) is None  # type: ignore[arg-type]
    assert "the run goes on" in capsys.readouterr().err
    assert record.status == ExecutionStatus.RUNNING


def test_stop_asks_sagemaker_and_tells_zenml(sagemaker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    aws, stubber = sagemaker
    record = Record({"ingest": "running"})
    zenml_has(record, monkeypatch)
    asked = {"PipelineExecutionArn": ARN, "ClientRequestToken": f"hls-stop-{record.id}"}
    stubber.add_response("stop_pipeline_execution", {"PipelineExecutionArn": ARN}, asked)
    stop(record.run(), aws)
    assert record.status == ExecutionStatus.STOPPED
    with pytest.raises(ConfigError, match="has ended already"):
        stop(record.run(), aws)


def test_following_the_logs_of_a_run_on_sagemaker_says_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "start_zenml", lambda: None)
    monkeypatch.setattr(runs, "find_run", lambda run: Record({"ingest": "running"}).run())
    with pytest.raises(ConfigError, match="leave out --follow"):
        runs.show_logs("flood-train-1", None, follow=True)


def test_first_failed_job_is_the_one_that_is_told() -> None:
    steps = [
        {"StepName": "evaluate", "StepStatus": "Failed", "FailureReason": "later"},
        {"StepName": "fine_tune", "StepStatus": "Failed", "FailureReason": "first"},
    ]
    assert failed_job(steps) == "fine_tune: first"
    assert failed_job([{"StepName": "split", "StepStatus": "Succeeded"}]) == ""
