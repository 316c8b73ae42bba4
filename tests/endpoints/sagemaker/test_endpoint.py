"""What an endpoint says of itself: in lists, in summaries, as a stored result."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import botocore.session
import pytest
from botocore import xform_name

from hls_foundry.endpoints.deployed import Deployed
from hls_foundry.endpoints.local import Endpoint
from hls_foundry.endpoints.process import ServerProcess
from hls_foundry.endpoints.sagemaker.endpoint import SageMakerEndpoint
from steps.encoding import decode, encode

REMOTE = SageMakerEndpoint(
    name="scars",
    url="https://runtime.sagemaker.eu-central-1.amazonaws.com/endpoints/scars/invocations",
    model_version="3",
    sha256="a" * 64,
    since="2026-11-23T09:00:00+00:00",
    kind="realtime",
    arn="arn:aws:sagemaker:eu-central-1:123456789012:endpoint/scars",
    region="eu-central-1",
    status="InService",
    config="scars-c-0123456789ab",
    home="s3://models/hls-foundry/endpoints/scars/",
)
BOTH = replace(REMOTE, kind="multi_model", models={"burn_scars": "3", "flood": "7"}, model_version="burn_scars=3 flood=7")
ASYNC = replace(REMOTE, kind="async", output="s3://results/hls/")
LOCAL = Endpoint(
    name="burn_scars", url="http://127.0.0.1:8080", model_version="3", sha256="a" * 64, since="2026-11-23T09:00:00+00:00",
    port=8080, bundle="/b", log="/l", process=ServerProcess(1, "b:1", "c.sock"),
)  # fmt: skip


@pytest.mark.parametrize("endpoint", [REMOTE, BOTH, ASYNC, LOCAL])
def test_an_endpoint_is_stored_and_read_back(endpoint: Deployed) -> None:
    assert decode(json.loads(json.dumps(encode(endpoint)))) == endpoint


def test_results_stored_before_there_were_several_targets_still_load() -> None:
    stored = encode(LOCAL)
    del stored["fields"]["target"], stored["fields"]["kind"]
    assert decode(stored) == LOCAL


@pytest.mark.parametrize("endpoint", [REMOTE, BOTH, ASYNC, LOCAL])
def test_commands_can_be_typed_and_end_with_the_deletion(endpoint: Deployed) -> None:
    lines = endpoint.commands("python run.py")
    for line in lines:
        word, _, command = line.partition(":")
        assert shlex.split(command), word
        assert "\n" not in line
    stack = "" if endpoint is LOCAL else " --stack aws"
    assert lines[-1].split(maxsplit=1) == ["delete:", f"python run.py endpoints{stack} --delete {endpoint.name}"]


@pytest.mark.parametrize("endpoint", [REMOTE, BOTH, ASYNC])
def test_commands_say_what_takes_run_py_and_a_shell_to_the_rehearsal(endpoint: SageMakerEndpoint) -> None:
    lines = dict(line.split(maxsplit=1) for line in endpoint.commands("python run.py", "--rehearse", shell="eval x"))
    assert list(lines)[:3] == ["call:", "shell:", "AWS"]
    assert [word for word, command in lines.items() if "--rehearse" in command] == ["call:", "delete:"]
    assert "--rehearse" not in "\n".join(endpoint.commands("python run.py"))


@pytest.mark.parametrize("endpoint", [REMOTE, BOTH, ASYNC])
def test_options_of_the_aws_cli_are_members_of_the_operation_and_python_is_python(endpoint: SageMakerEndpoint) -> None:
    lines = {word: command for line in endpoint.commands("run.py") for word, _, command in [line.partition(":")]}
    _, _, operation, *words = shlex.split(lines["AWS CLI"])
    model = botocore.session.Session().get_service_model("sagemaker-runtime")
    members = model.operation_model("".join(part.capitalize() for part in operation.split("-"))).input_shape.members
    known = {xform_name(name, "-") for name in members} | {"region"}
    assert {word.removeprefix("--") for word in words if word.startswith("--")} <= known
    compile(lines["Python"].strip(), "printed", "exec")


def test_commands_name_the_model_where_there_are_several() -> None:
    told = "\n".join(BOTH.commands("python run.py"))
    assert told.count("burn_scars.tar.gz") == 3
    assert "--task burn_scars" in told
    assert "TargetModel" not in "\n".join(REMOTE.commands("python run.py"))


def test_async_endpoints_are_called_by_location() -> None:
    told = "\n".join(ASYNC.commands("python run.py"))
    assert "invoke-endpoint-async" in told
    assert "InputLocation" in told
    assert "curl" not in told


def test_a_line_tells_state_version_and_what_went_wrong() -> None:
    line = replace(REMOTE, status="Failed", problem="out of capacity").line()
    for part in ("scars", "Failed realtime", "version 3", "since 2026-11-23", "out of capacity"):
        assert part in line
