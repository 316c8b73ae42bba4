"""Stack and site files as what the cluster is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from hls_foundry.errors import ConfigError
from stacks.definition import known_sites, load_stack
from stacks.slurm.requests import OTHER_STEPS, cluster_configuration, slurm_requests

ENVIRONMENT = {"HLS_REHEARSAL_SLURM_CONF": "/x/slurm.conf", "HLS_ACCOUNT": "water", "HLS_PARTITION": "big", "HLS_FOUNDRY_HOME": "/shared/f"}
BASE = "components: [{type: orchestrator, flavor: slurm, configuration: {folder: runs%s}}]\npublish: {folder: x}\nsettings: {%s}\n"


@pytest.mark.parametrize("site", known_sites())
def test_each_site_s_settings_are_slurm_s(site: str) -> None:
    stack = load_stack("hpc", ENVIRONMENT, site=site)
    assert cluster_configuration(stack).folder == "/shared/f/slurm"
    requests = slurm_requests(stack)
    assert {OTHER_STEPS, "fine_tune"} <= requests.keys()
    for request in requests.values():
        assert request.settings.time_s
        assert request.settings.time_s <= 24 * 3600
        assert request.resources.cpus
        assert request.resources.memory_mib
    if site != "rehearsal":
        assert requests["fine_tune"].settings.account == "water"


def test_gpus_and_nodes_come_from_variables() -> None:
    given = {**ENVIRONMENT, "HLS_NODES": "2", "HLS_GPUS_PER_NODE": "8"}
    stack = load_stack("hpc", given, site="gpu")
    request = slurm_requests(stack)["fine_tune"]
    assert (request.settings.nodes, request.resources.gpus, request.settings.partition) == (2, 8, "big")
    assert stack.config_overrides() == ("training.processes=8",)


@pytest.mark.parametrize(
    ("configuration", "settings", "words"),
    [
        ("", "slurm: {partitoin: big}", ("mine.yaml: settings.slurm: ", "'partitoin'", "'partition'")),
        ("", "steps: {fine_tune: {slurm: {nodes: 0}}}", ("mine.yaml: settings.steps.fine_tune.slurm: 'nodes'",)),
        ("", "slurm: {account: 'a; rm -rf /'}", ("mine.yaml: settings.slurm: 'account'",)),
        (", pol_s: 3", "", ("mine.yaml: orchestrator's", "pol_s", "'poll_s'")),
        (", login: 'me@host'", "", ("mine.yaml: orchestrator's", "'folder' must be an absolute path")),
    ],
)
def test_wrong_slurm_settings_are_one_line_with_file_and_key(
    tmp_path: Path, configuration: str, settings: str, words: tuple[str, ...]
) -> None:
    (tmp_path / "mine.yaml").write_text(BASE % (configuration, settings))
    with pytest.raises(ConfigError) as caught:
        slurm_requests(load_stack("mine", {}, tmp_path))
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
