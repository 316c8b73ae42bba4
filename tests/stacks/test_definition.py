"""Stack files: variables, unknown keys, stacks that come later."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hls_foundry.errors import ConfigError
from stacks.definition import load_stack

ROOT = Path(__file__).resolve().parents[2]
VALID = "components: [{type: orchestrator, flavor: local}, {type: artifact_store, flavor: local}]\npublish: {folder: '%s'}\n"


def write(folder: Path, content: str) -> Path:
    (folder / "mine.yaml").write_text(content)
    return folder


def test_the_local_stack_loads_without_any_variable() -> None:
    stack = load_stack("local", {})
    assert stack.publish.folder == ".foundry/published"
    assert stack.endpoint is not None
    assert stack.endpoint.target == "local"


AWS = {
    "HLS_AWS_BUCKET": "models", "HLS_AWS_ROLE": "hls", "HLS_AWS_IMAGE": "123456789012.dkr.ecr.eu-central-1.amazonaws.com/serve:1"
}  # fmt: skip


@pytest.mark.parametrize("kind", ["realtime", "serverless", "async", "multi_model"])
def test_a_variable_chooses_the_kind_of_endpoint_on_aws(kind: str) -> None:
    endpoint = load_stack("aws", {**AWS, "HLS_AWS_KIND": kind}).endpoint
    assert endpoint is not None
    assert endpoint.kind == kind
    assert load_stack("aws", AWS).endpoint.kind == "realtime"  # type: ignore[union-attr]


def test_a_wrong_kind_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"aws\.yaml: 'endpoint\.kind': Input should be .*'serverless'"):
        load_stack("aws", {**AWS, "HLS_AWS_KIND": "serverles"})


def test_variables_are_filled_and_defaults_used(tmp_path: Path) -> None:
    folder = write(tmp_path, VALID % "${WHERE}/${WHAT:-models}")
    assert load_stack("mine", {"WHERE": "/somewhere"}, folder).publish.folder == "/somewhere/models"


def test_a_missing_variable_is_named_with_its_file(tmp_path: Path) -> None:
    folder = write(tmp_path, VALID % "${BUCKET}")
    with pytest.raises(ConfigError, match=r"mine\.yaml needs the environment variable BUCKET"):
        load_stack("mine", {}, folder)


def test_a_value_cannot_add_keys(tmp_path: Path) -> None:
    folder = write(tmp_path, VALID % "${WHERE}")
    hostile = "x'}\nendpoint: {target: elsewhere"
    assert load_stack("mine", {"WHERE": hostile}, folder).publish.folder == hostile


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((VALID % "x") + "endpiont: {}\n", "'endpiont': unknown key"),
        ((VALID % "x") + "endpoint: {size: big}\n", r"'endpoint\.size': unknown key"),
        ("components: []\n", "'publish': Field required"),
        ("components: [", "not valid YAML"),
        ("7", "must hold a mapping"),
    ],
)
def test_wrong_stack_files_are_one_line(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_stack("mine", {}, write(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_unknown_stacks(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="known stacks: mine"):
        load_stack("other", {}, write(tmp_path, VALID % "x"))


def test_reading_a_stack_does_not_import_zenml() -> None:
    code = "import sys; from stacks.definition import load_stack; load_stack('hpc', {}); sys.exit('zenml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_a_variable_can_say_what_to_do_without_it(tmp_path: Path) -> None:
    folder = write(tmp_path, VALID % "${WHERE:?ask the administrator for one}")
    assert load_stack("mine", {"WHERE": "here"}, folder).publish.folder == "here"
    for environment in ({}, {"WHERE": ""}):
        with pytest.raises(ConfigError, match=r"needs the environment variable WHERE.*: ask the administrator"):
            load_stack("mine", environment, folder)
