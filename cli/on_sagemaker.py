"""What run.py does besides for a stack on SageMaker's own orchestrator: the steps' settings, following the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from cli.on_slurm import StepFailed
from cli.summary import RUN
from hls_foundry import errors
from hls_foundry.endpoints.aws import Aws, aws_errors
from hls_foundry.errors import ConfigError, EndpointError, FoundryError
from stacks.aws.managed import sagemaker_settings
from stacks.definition import nearest

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse

    from hls_foundry.config import FoundryConfig
    from stacks.definition import StackDefinition

POLL_S = 20.0
ENDED = ("Succeeded", "Failed", "Stopped")
REMOTE = ("s3://", "hf://", "synthetic://")
SERVER = (
    "SageMaker's jobs cannot reach the ZenML store of this machine: connect to a ZenML server first: zenml login URL "
    "(or set ZENML_STORE_URL and ZENML_STORE_API_KEY)"
)


def check_places(config: FoundryConfig) -> None:
    """Chips and weights must be where the jobs can read them. Raises ConfigError, one line."""
    source, weights = config.data.source, config.model.weights
    if not source.startswith(REMOTE):
        raise ConfigError(
            f"SageMaker's jobs cannot read the chips in {source}: aws s3 sync {source} s3://BUCKET/chips, and --data s3://BUCKET/chips"
        )
    if weights != "none" and not weights.startswith("hf://"):
        raise ConfigError(f"SageMaker's jobs cannot read the weights {weights}: set model.weights to hf://OWNER/NAME/FILE")


def check_server() -> None:
    """Raises ConfigError, one line, where ZenML's store is of this machine only. ZenML must have been started."""
    from zenml.client import Client

    if Client().zen_store.is_local_store():
        raise ConfigError(SERVER)


def pipeline_options(definition: StackDefinition) -> dict[str, Any]:
    """Arguments of ZenML's `with_options`: image and instance of every step. Raises ConfigError for what SageMaker does not take."""
    from pipelines.train import STEPS

    if unknown := sorted(set(definition.settings.steps) - set(STEPS)):
        raise ConfigError(f"{definition.file}: 'settings.steps.{unknown[0]}': no such step: {nearest(unknown[0], list(STEPS))}")
    found = sagemaker_settings(definition, Aws(definition.publish.aws).region)
    docker = {"skip_build": True, "parent_image": definition.settings.image}
    steps: dict[str, Any] = {}
    for name, own in definition.settings.steps.items():
        retry = {} if own.retry is None else {"retry": own.retry.model_dump()}
        steps[name] = {"settings": {"orchestrator": found[name]}, **retry}
    return {"settings": {"docker": docker, "orchestrator": found[""]}, "steps": steps}


def follow(run: PipelineRunResponse, aws: Aws, *, pause: Callable[[float], None] = time.sleep) -> PipelineRunResponse | None:
    """Tell of each step as it begins and ends, until the run has ended; then ZenML's record of it. None where Ctrl-C ended the watching.

    The steps report to ZenML; SageMaker is asked as well, since a job that never started cannot.
    """
    from zenml.client import Client

    told: dict[str, str] = {}
    try:
        while True:
            run = Client().get_pipeline_run(run.id)
            _tell(run, told)
            if run.status.is_finished:
                return run
            state = _ask(run, aws, told)
            if state in ENDED:
                return _ended(run, state)
            pause(POLL_S)
    except KeyboardInterrupt:
        click.echo(f"the run goes on: {RUN} status {run.name}", err=True)
        return None


def detached(run: PipelineRunResponse) -> None:
    """Say where a run that was only submitted can be found, and how to go on."""
    where = run.run_metadata.get("orchestrator_url") or run.run_metadata.get("pipeline_execution_arn")
    click.echo(f"submitted   {run.name}: {where}")
    click.echo(f"  look at it: {RUN} status {run.name}\n  deploy once it has ended: {RUN} --stack aws-managed --pipeline deploy")


def is_on_sagemaker(run: PipelineRunResponse) -> bool:
    """Whether the run's steps are SageMaker's jobs."""
    return "pipeline_execution_arn" in run.run_metadata


def stop(run: PipelineRunResponse, aws: Aws) -> None:
    """End the run's jobs; raises EndpointError (one line). ZenML has no way to ask SageMaker for it."""
    from zenml.client import Client
    from zenml.enums import ExecutionStatus
    from zenml.models import PipelineRunUpdate

    if run.status.is_finished:
        raise ConfigError(f"run {run.name} has ended already ({run.status.value})")
    with aws_errors("SageMaker"):
        arn = str(run.run_metadata["pipeline_execution_arn"])
        aws.client("sagemaker").stop_pipeline_execution(PipelineExecutionArn=arn, ClientRequestToken=f"hls-stop-{run.id}")
    Client().zen_store.update_run(run.id, PipelineRunUpdate(status=ExecutionStatus.STOPPED))
    click.echo(f"asked SageMaker to stop run {run.name}: its jobs end within minutes, what they have not stored is lost")


def problem_of(run: PipelineRunResponse, aws: Aws) -> Exception | None:
    """Why a run that has ended failed, None where it did not; a FoundryError where a step said what the user can mend."""
    if run.status.is_successful:
        return None
    for name, step in run.steps.items():
        if step.status.is_failed and step.exception_info is not None:
            return problem_in(name, step.exception_info.source or "", step.exception_info.message or "no message")
    return StepFailed(_reason(run, aws) or f"the run is {run.status.value}")


def problem_in(step: str, source: str, message: str) -> Exception:
    """What the exception `source` (its class with the module) of a step says, as a FoundryError where it is one of ours."""
    kind = getattr(errors, source.removeprefix("hls_foundry.errors."), None)
    if isinstance(kind, type) and issubclass(kind, FoundryError):
        return FoundryError(f"{step}: {message}")
    return StepFailed(f"{step}: {source.rpartition('.')[2]}: {' '.join(message.split())[:400]}")


def failed_job(steps: Sequence[Mapping[str, Any]]) -> str:
    """The first step that SageMaker says has failed, with its reason; empty where there is none.

    `steps`: PipelineExecutionSteps of ListPipelineExecutionSteps, the latest first.
    """
    failed = [step for step in reversed(steps) if step.get("StepStatus") == "Failed"]
    return f"{failed[0]['StepName']}: {' '.join(failed[0].get('FailureReason', 'no reason given').split())}" if failed else ""


def _tell(run: PipelineRunResponse, told: dict[str, str]) -> None:
    for name, step in run.steps.items():
        if told.get(name) != step.status.value:
            told[name] = step.status.value
            click.echo(f"{name:<11} {step.status.value}", err=True)


def _ask(run: PipelineRunResponse, aws: Aws, told: dict[str, str]) -> str:
    """SageMaker's word for the execution, such as Executing; empty where it does not answer, which is told once."""
    try:
        return str(_described(run, aws)["PipelineExecutionStatus"])
    except EndpointError as error:
        if told.get("") != str(error):
            told[""] = str(error)
            click.echo(f"{error}; asking on", err=True)
        return ""


def _described(run: PipelineRunResponse, aws: Aws) -> dict[str, Any]:
    with aws_errors("SageMaker"):
        arn = str(run.run_metadata["pipeline_execution_arn"])
        return dict(aws.client("sagemaker").describe_pipeline_execution(PipelineExecutionArn=arn))


def _ended(run: PipelineRunResponse, state: str) -> PipelineRunResponse:
    """The run once SageMaker has ended it: steps that never started cannot say so to ZenML, so that it is said for them."""
    from zenml.client import Client
    from zenml.enums import ExecutionStatus
    from zenml.models import PipelineRunUpdate

    words = {"Succeeded": ExecutionStatus.COMPLETED, "Failed": ExecutionStatus.FAILED, "Stopped": ExecutionStatus.STOPPED}
    run = Client().get_pipeline_run(run.id)
    if not run.status.is_finished:
        Client().zen_store.update_run(run.id, PipelineRunUpdate(status=words[state]))
    return Client().get_pipeline_run(run.id)


def _reason(run: PipelineRunResponse, aws: Aws) -> str:
    try:
        described = _described(run, aws)
        with aws_errors("SageMaker"):
            arn = described["PipelineExecutionArn"]
            steps = aws.client("sagemaker").list_pipeline_execution_steps(PipelineExecutionArn=arn)["PipelineExecutionSteps"]
    except EndpointError as error:
        return f"the run is {run.status.value}, and SageMaker does not say why ({error})"
    return failed_job(steps) or str(described.get("FailureReason", ""))
