"""The stack aws-managed: what ZenML compiles and submits to SageMaker, and what is said where it cannot run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli.on_sagemaker import problem_in
from cli.on_slurm import StepFailed
from hls_foundry.errors import ConfigError, FoundryError
from stacks.aws.managed import deploying, on_sagemaker, sagemaker_settings
from stacks.aws.rehearsal import Rehearsal
from stacks.aws.rehearsal.account import INDEX, TRUST
from stacks.definition import StackDefinition, StackSettings, load_stack
from tests.aws.calls import actions, calls_in
from tests.aws.rehearsed import Account, account
from tests.aws.test_policy import granted
from tests.stacks.zenml_server import zenml_server

ROOT = Path(__file__).resolve().parents[2]
SESSION = Path(__file__).with_name("managed_session.py")
IMAGE = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/hls-foundry-train:1"
ROLE = "arn:aws:iam::123456789012:role/hls-foundry-train"
CHIPS = "synthetic://flood?chips=12&size=64&seed=1"
VARIABLES = {
    "AWS_REGION": "eu-central-1", "HLS_AWS_BUCKET": "bucket", "HLS_AWS_ROLE": "endpoint-role", "HLS_AWS_TRAIN_ROLE": ROLE,
    "HLS_AWS_IMAGE": IMAGE.replace("train", "serve"), "HLS_AWS_TRAIN_IMAGE": IMAGE,
}  # fmt: skip
RUN = ("--stack", "aws-managed", "--task", "flood", "--config", "configs/demo.yaml")
# ZenML's folder in its images is /app, which this machine has not.
IN_A_CONTAINER = """
import os, runpy, sys
app, makedirs, chdir = sys.argv.pop(1), os.makedirs, os.chdir
os.makedirs = lambda path, *more, **options: makedirs(app if path == "/app" else path, *more, **options)
os.chdir = lambda path: chdir(app if path == "/app" else path)
runpy.run_module("zenml.entrypoints.entrypoint", run_name="__main__", alter_sys=True)
"""
COMMANDS = {
    "doctor": ("doctor", "--stack", "aws-managed"),
    "run": (*RUN, "--data", CHIPS),
    "own chips": (*RUN, "--data", "chips/here"),
}
WITH_SERVER = {"submit": (*RUN, "--data", CHIPS, "--detach")}

ORDER = ("ingest", "validate", "split", "fine_tune", "evaluate", "promote", "publish")


@dataclass(frozen=True)
class Session:
    """What run.py answered on the rehearsal: `answers` by what was asked."""

    account: Account
    environment: dict[str, str]
    answers: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def session(aws_rehearsal: Rehearsal, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """The account has a role and an image for the jobs."""
    with account(aws_rehearsal, "managed") as found:
        iam, ecr = found.client("iam"), found.client("ecr")
        iam.create_role(RoleName=ROLE.rpartition("/")[2], AssumeRolePolicyDocument=json.dumps(TRUST))
        ecr.create_repository(repositoryName="hls-foundry-train")
        ecr.put_image(repositoryName="hls-foundry-train", imageManifest=json.dumps(INDEX), imageTag="1")
        folder = tmp_path_factory.mktemp("managed")
        with zenml_server(folder / "server") as server:
            yield ask(found, aws_rehearsal.environment, folder, server)
        iam.delete_role(RoleName=ROLE.rpartition("/")[2])
        ecr.delete_repository(repositoryName="hls-foundry-train", force=True)


def ask(found: Account, rehearsal: Mapping[str, str], folder: Path, server: Mapping[str, str]) -> Session:
    """Run all commands, those of a kind in a process and a ZenML home of their own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "HLS_", "ZENML_", "SAGEMAKER_"))}
    there = {"HLS_AWS_BUCKET": found.prepared.bucket, "HLS_AWS_ROLE": found.prepared.role, "HLS_AWS_IMAGE": found.prepared.image}
    own = {"HLS_FOUNDRY_HOME": str(folder / "foundry"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment = {**kept, **rehearsal, **VARIABLES, **there, **own}
    answers = {}
    for store, commands in ({}, COMMANDS), (server, WITH_SERVER):
        home = folder / ("with-server" if store else "without")
        command = [sys.executable, str(SESSION), str(folder / "answers.json"), *map(json.dumps, commands.values())]
        asked = {**environment, **store, "ZENML_CONFIG_PATH": str(home)}
        done = subprocess.run(command, env=asked, cwd=ROOT, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-3000:]
        answers.update(zip(commands, json.loads((folder / "answers.json").read_text()), strict=True))
    return Session(found, environment, answers)


@pytest.fixture(scope="module")
def submitted(session: Session) -> dict[str, Any]:
    """A run that was compiled and submitted: run.py's answer, and under `definition` what SageMaker holds."""
    answer = session.answers["submit"]
    assert answer["code"] == 0, (answer["out"], answer["err"], answer["error"])
    arn = answer["metadata"]["pipeline_execution_arn"]
    described = session.account.sm.describe_pipeline(PipelineName=arn.split("/")[1])
    return {**answer, "described": described, "definition": json.loads(described["PipelineDefinition"])}


@pytest.fixture(scope="module")
def jobs(submitted: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The training jobs that SageMaker would start, by step."""
    return {step["Name"]: step["Arguments"] for step in submitted["definition"]["Steps"]}


def test_every_step_is_a_job_that_waits_for_those_it_takes_from(submitted: dict[str, Any]) -> None:
    steps = submitted["definition"]["Steps"]
    assert [step["Name"] for step in steps] == list(ORDER)
    assert {step["Type"] for step in steps} == {"Training"}
    needs = {step["Name"]: set(step.get("DependsOn", ())) for step in steps}
    assert needs["ingest"] == set()
    assert (needs["fine_tune"], needs["evaluate"]) == ({"split"}, {"fine_tune", "split"})
    assert needs["publish"] >= {"promote"}


def test_fine_tuning_gets_a_gpu_and_the_others_do_not(jobs: dict[str, dict[str, Any]]) -> None:
    usual = {"InstanceType": "ml.m5.xlarge", "VolumeSizeInGB": 30, "InstanceCount": 1, "KeepAlivePeriodInSeconds": 0}
    gpu = {"InstanceType": "ml.g5.xlarge", "VolumeSizeInGB": 100, "InstanceCount": 1, "KeepAlivePeriodInSeconds": 0}
    for name, job in jobs.items():
        assert job["ResourceConfig"] == (gpu if name == "fine_tune" else usual), name
    assert jobs["fine_tune"]["StoppingCondition"] == {"MaxRuntimeInSeconds": 86400}
    assert jobs["evaluate"]["StoppingCondition"] == {"MaxRuntimeInSeconds": 14400}


def test_jobs_run_the_image_that_was_given_as_the_role_that_was_given(jobs: dict[str, dict[str, Any]], submitted: dict[str, Any]) -> None:
    assert {job["AlgorithmSpecification"]["TrainingImage"] for job in jobs.values()} == {IMAGE}
    assert {job["RoleArn"] for job in jobs.values()} == {submitted["described"]["RoleArn"]} == {ROLE}
    for name, job in jobs.items():
        arguments = job["AlgorithmSpecification"]["ContainerArguments"]
        assert arguments[arguments.index("--step_name") + 1] == name
        assert all(len(argument) <= 256 for argument in arguments), "more than SageMaker takes"
        assert "DebugHookConfig" not in job, "writes to S3 what nobody reads"


def test_jobs_have_a_home_a_region_and_no_credentials(jobs: dict[str, dict[str, Any]], session: Session) -> None:
    for job in jobs.values():
        environment = job["Environment"]
        assert (environment["HLS_FOUNDRY_HOME"], environment["AWS_DEFAULT_REGION"]) == ("/tmp/hls-foundry", "eu-central-1")
        assert not {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"} & set(environment)
        assert len(environment) <= 100, "more than SageMaker takes"
        assert all(len(value) <= 512 for value in environment.values() if isinstance(value, str))
        assert session.environment["AWS_SECRET_ACCESS_KEY"] not in json.dumps(job)


def test_outputs_stay_in_our_bucket_and_no_other_is_made(
    jobs: dict[str, dict[str, Any]], submitted: dict[str, Any], session: Session
) -> None:
    bucket = session.account.prepared.bucket
    assert {job["OutputDataConfig"]["S3OutputPath"] for job in jobs.values()} == {f"s3://{bucket}/hls-foundry/jobs"}
    used = {params["Bucket"] for service, _, params in submitted["requests"] if service == "s3"}
    assert used == {bucket}
    assert "CreateBucket" not in {operation for _, operation, _ in submitted["requests"]}


def test_the_code_of_this_checkout_is_in_the_store_before_the_run_starts(submitted: dict[str, Any], session: Session) -> None:
    sent = [params["Key"] for _, operation, params in submitted["requests"] if operation == "PutObject"]
    assert any(key.startswith("zenml/code_uploads/") for key in sent)
    order = [operation for _, operation, _ in submitted["requests"]]
    assert order.index("PutObject") < order.index("CreatePipeline") < order.index("StartPipelineExecution")


def test_a_job_runs_as_it_was_submitted(
    jobs: dict[str, dict[str, Any]], submitted: dict[str, Any], session: Session, tmp_path: Path
) -> None:
    """Its command in its environment, without the checkout on the path: the code comes from S3, the chips go back there."""
    program, environment = jobs["ingest"]["AlgorithmSpecification"], jobs["ingest"]["Environment"]
    assert program["ContainerEntrypoint"] == ["python", "-m", "zenml.entrypoints.entrypoint"]
    given = {
        name: value if isinstance(value, str) else submitted["metadata"]["pipeline_execution_arn"] for name, value in environment.items()
    }
    aws = {name: value for name, value in session.environment.items() if name.startswith("AWS_")}
    places = {"HOME": str(tmp_path), "HLS_FOUNDRY_HOME": str(tmp_path / "home"), "ZENML_CONFIG_PATH": str(tmp_path / "zenml")}
    command = [sys.executable, "-c", IN_A_CONTAINER, str(tmp_path / "app"), *program["ContainerArguments"]]
    own = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env={**own, **aws, **given, **places}, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "12 chips, fingerprint" in done.stdout + done.stderr
    assert (tmp_path / "app" / "code" / "run.py").is_file()
    stored = session.account.s3.list_objects_v2(Bucket=session.account.prepared.bucket, Prefix="zenml/ingest/")
    assert stored["KeyCount"] > 0


def test_run_py_returns_and_says_how_to_go_on(submitted: dict[str, Any]) -> None:
    assert submitted["runs"][0] in submitted["out"]
    assert "--pipeline deploy" in submitted["out"]
    assert "sagemaker.config" not in submitted["out"], "the SDK talks at standard output"
    assert "hls-aws-managed" in submitted["stacks"]


def test_the_sdk_of_sagemaker_does_not_report_its_use(submitted: dict[str, Any]) -> None:
    assert submitted["reports"] == 0


def test_what_was_sent_is_in_the_policies_and_nothing_else_is_in_the_managed_one(submitted: dict[str, Any]) -> None:
    sent = {(service, operation) for service, operation, _ in submitted["requests"]}
    code = calls_in([ROOT / "cli" / "on_sagemaker.py", ROOT / "cli" / "doctor_managed.py"])
    looks = {call for call in calls_in([ROOT / "cli" / "doctor_aws.py"]) if call[0] in ("iam", "ecr")}
    needed = {action for call in sent | set(code) | looks for action in actions(call)}
    assert needed - granted("policy.json") - granted("managed-policy.json") == set()
    assert granted("managed-policy.json") - needed == set()
    assert {("sagemaker", "CreatePipeline"), ("sagemaker", "StartPipelineExecution")} <= sent
    assert ("sagemaker", "StopPipelineExecution") in code


def test_the_policy_fits_what_is_made(submitted: dict[str, Any], jobs: dict[str, dict[str, Any]]) -> None:
    (made,) = [params for _, operation, params in submitted["requests"] if operation == "CreatePipeline"]
    assert made["PipelineName"].startswith("train-")
    assert made["Tags"] == [{"Key": "hls-foundry", "Value": "aws-managed"}]
    for job in jobs.values():
        assert job["Tags"] == [{"Key": "hls-foundry", "Value": "aws-managed"}]


def test_jobs_may_do_in_s3_what_publishing_and_zenml_do() -> None:
    ours = {action for action in granted("policy.json") if action.startswith("s3:")}
    assert {action for action in granted("managed-role-policy.json") if action.startswith("s3:")} == ours


def test_without_a_server_a_run_is_one_line_that_says_to_log_in(session: Session) -> None:
    answer = session.answers["run"]
    assert answer["code"] == 2
    (line,) = [line for line in answer["err"].splitlines() if line.startswith("error: ")]
    assert "connect to a ZenML server first: zenml login URL" in line
    assert answer["runs"] == []
    assert not [operation for _, operation, _ in answer["requests"] if operation == "CreatePipeline"]


def test_chips_that_only_this_machine_has_are_refused_with_where_to_put_them(session: Session) -> None:
    answer = session.answers["own chips"]
    assert answer["code"] == 2
    assert "cannot read the chips in" in answer["err"]
    assert "--data s3://BUCKET/chips" in answer["err"]


def test_doctor_validates_the_stack_offline_and_finds_only_the_server_missing(session: Session) -> None:
    answer = session.answers["doctor"]
    lines = answer["out"].splitlines()
    looked_at = ("stack", "zenml", "server", "jobs", "docker", "job", "role", "image", "quota")
    relevant = [line for line in lines if line[5:].split()[0] in looked_at]
    assert [line for line in relevant if line.startswith("FAIL")] == [line for line in lines if line.startswith("FAIL server ")]
    assert answer["code"] == 2
    told = "\n".join(relevant)
    assert "zenml login URL" in told
    assert "stack hls-aws-managed registered" in told
    assert "6 of ml.m5.xlarge, 1 of ml.g5.xlarge" in told
    assert f"{ROLE} trusts sagemaker.amazonaws.com" in told
    assert "job image      hls-foundry-train, sha256:" in told
    assert "ml.g5.xlarge for training job usage: 8, and 1 needed" in told


def stack(**settings: Any) -> StackDefinition:
    """The stack as it is, but for `settings`."""
    found = load_stack("aws-managed", VARIABLES)
    return found.model_copy(update={"settings": StackSettings.model_validate({**found.settings.model_dump(), **settings})})


def test_stack_file_names_every_variable_it_lacks() -> None:
    for name in set(VARIABLES) - {"AWS_REGION"}:
        with pytest.raises(ConfigError, match=f"needs the environment variable {name}"):
            load_stack("aws-managed", {key: value for key, value in VARIABLES.items() if key != name})


def test_registry_is_the_host_of_the_image_as_a_shell_cuts_it() -> None:
    definition = load_stack("aws-managed", VARIABLES)
    (registry,) = [part for part in definition.components if part.type == "container_registry"]
    assert registry.configuration == {"uri": "123456789012.dkr.ecr.eu-central-1.amazonaws.com"}


def test_what_a_step_changes_is_laid_on_what_all_steps_get() -> None:
    found = sagemaker_settings(stack(steps={"evaluate": {"sagemaker": {"environment": {"A": "b"}}}}), "eu-west-1")
    assert found["evaluate"]["instance_type"] == "ml.m5.xlarge"
    assert found["evaluate"]["environment"].items() >= {"A": "b", "AWS_DEFAULT_REGION": "eu-west-1"}.items()
    assert "A" not in found[""]["environment"]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"sagemaker": {"instanc_type": "ml.m5.large"}}, "'settings.sagemaker.instanc_type': unknown key: did you mean 'instance_type'"),
        ({"sagemaker": {"volume_size_in_gb": "much"}}, "'settings.sagemaker.volume_size_in_gb': Input should be a valid integer"),
        ({"steps": {"split": {"sagemaker": {"gpus": 1}}}}, "'settings.steps.split.sagemaker.gpus': unknown key"),
        ({"steps": {"split": {"slurm": {"time": "5"}}}}, "'settings.steps.split.slurm': is for a Slurm cluster"),
        ({"resources": {"gpu_count": 1}}, "'settings.resources': SageMaker's instances come in sizes"),
        ({"image": "hls-foundry-train"}, "'settings.image': give an image in ECR"),
    ],
)
def test_wrong_settings_are_one_line_with_file_and_key(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        sagemaker_settings(stack(**settings), "eu-central-1")
    assert line in str(refused.value)
    assert "aws-managed.yaml" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ("image: x", "settings.image"),
        ("sagemaker: {instance_type: ml.m5.large}", "settings.sagemaker"),
        ("steps: {split: {sagemaker: {tags: {a: b}}}}", "settings.steps.split.sagemaker"),
    ],
)
def test_other_orchestrators_refuse_what_they_would_not_heed(tmp_path: Path, settings: str, key: str) -> None:
    components = "components: [{type: orchestrator, flavor: local}, {type: artifact_store, flavor: local}]"
    (tmp_path / "mine.yaml").write_text(f"{components}\nsettings: {{{settings}}}\npublish: {{folder: x}}\n")
    with pytest.raises(ConfigError, match=f"'{key}' is for SageMaker's orchestrator"):
        load_stack("mine", {}, tmp_path)


def test_role_has_to_be_an_arn() -> None:
    with pytest.raises(ConfigError, match="give the role's ARN"):
        sagemaker_settings(load_stack("aws-managed", {**VARIABLES, "HLS_AWS_TRAIN_ROLE": "jobs"}), "eu-central-1")


def test_deployment_runs_in_this_process_on_the_same_store() -> None:
    definition = load_stack("aws-managed", VARIABLES)
    made = deploying(definition)
    assert (on_sagemaker(definition), on_sagemaker(made)) == (True, False)
    assert [(part.type, part.flavor) for part in made.components] == [("orchestrator", "local"), ("artifact_store", "s3")]
    assert made.components[1].name == "hls-aws-managed-artifact-store"
    assert (made.name, made.endpoint, made.publish) == ("aws-managed-deploy", definition.endpoint, definition.publish)
    aws = load_stack("aws", VARIABLES)
    assert made.endpoint is not None
    assert aws.endpoint is not None
    assert (made.endpoint.target, made.endpoint.name, made.publish.place) == ("sagemaker", aws.endpoint.name, aws.publish.place)


@pytest.mark.parametrize(
    ("message", "kind"),
    [("hls_foundry.errors.EndpointError", FoundryError), ("builtins.RuntimeError", StepFailed), ("", StepFailed)],
)
def test_a_failed_step_says_what_the_user_can_mend_as_such(message: str, kind: type[Exception]) -> None:
    found = problem_in("publish", message, "the bucket is gone:\nmake it")
    assert type(found) is kind
    assert str(found).startswith("publish: ")
