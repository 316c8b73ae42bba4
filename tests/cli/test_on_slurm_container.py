"""What run.py tells Slurm's settings of a container: the places that a configuration names, and nothing where there is no container."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cli.on_slurm import pipeline_options
from hls_foundry.config import load_config
from stacks.definition import load_stack
from stacks.slurm.requests import OTHER_STEPS, slurm_requests

ROOT = Path(__file__).resolve().parents[2]
SITE = {"HLS_REHEARSAL_SLURM_CONF": "/none"}


def options(environment: dict[str, str], tmp_path: Path) -> dict[str, Any]:
    definition = load_stack("hpc", {**SITE, "HLS_FOUNDRY_HOME": str(tmp_path), **environment})
    (tmp_path / "chips").mkdir()
    named = (f"data.source={tmp_path / 'chips'}", f"model.weights={tmp_path / 'weights' / 'prithvi.pt'}")
    config = load_config(ROOT / "configs", task="flood", overrides=named)
    return pipeline_options(definition, {"config": config, "publishing": definition.publish, "source_fingerprint": "1"})


def test_chips_weights_and_archives_are_seen_in_the_container_of_each_step(tmp_path: Path) -> None:
    found = options({"HLS_CONTAINER": "apptainer", "HLS_CONTAINER_IMAGE": "/a.sif"}, tmp_path)
    for settings in (found["settings"], found["steps"]["fine_tune"]["settings"]):
        container = settings["orchestrator"]["container"]
        # The folders of weights and archives are yet to be made: their nearest one is bound.
        assert container == {"runtime": "apptainer", "image": "/a.sif", "binds": [str(tmp_path), str(tmp_path / "chips")]}


def test_without_a_container_there_is_none(tmp_path: Path) -> None:
    assert options({}, tmp_path)["settings"]["orchestrator"]["container"] == {"runtime": "none"}
    requests = slurm_requests(load_stack("hpc", SITE))
    assert not any(request.settings.container.active for request in requests.values())


@pytest.mark.parametrize("command", ["apptainer", "python3 /tools/wrap.py /opt/apptainer"])
def test_the_runtimes_command_may_be_several_words(command: str) -> None:
    environment = {**SITE, "HLS_CONTAINER": "apptainer", "HLS_CONTAINER_IMAGE": "/a.sif", "HLS_CONTAINER_COMMAND": command}
    assert slurm_requests(load_stack("hpc", environment))[OTHER_STEPS].settings.container.command == command.split()
