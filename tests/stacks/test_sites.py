"""Sites: overlays on stacks/hpc.yaml, each one complete with the variables that it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from hls_foundry.config import load_config
from hls_foundry.errors import ConfigError
from stacks.definition import StackDefinition, known_sites, load_stack

ROOT = Path(__file__).resolve().parents[2]
BASE = """
sites: true
components:
  - {type: orchestrator, flavor: slurm, configuration: {folder: runs, poll_s: 5}}
  - {type: artifact_store, flavor: local}
settings:
  resources: {cpu_count: 2, memory: 4GB}
  slurm: {time: "01:00:00", environment: {A: one, B: two}}
  steps: {fine_tune: {slurm: {nodes: 2}, retry: {max_retries: 1}}}
overrides: {training.processes: 2}
publish: {folder: published}
"""
NEEDS = {"rehearsal": {"HLS_REHEARSAL_SLURM_CONF": "slurm.conf"}, "jureca": {"HLS_ACCOUNT": "hai_foundry"}}


def site(folder: Path, overlay: str, **environment: str) -> StackDefinition:
    (folder / "sites").mkdir(exist_ok=True)
    (folder / "hpc.yaml").write_text(BASE)
    (folder / "sites" / "mine.yaml").write_text(overlay)
    return load_stack("hpc", environment, folder, site="mine")


def orchestrator(stack: StackDefinition) -> dict[str, object]:
    return next(part.configuration for part in stack.components if part.type == "orchestrator")


@pytest.mark.parametrize("name", known_sites())
def test_each_site_loads_and_its_overrides_are_a_configuration(name: str) -> None:
    stack = load_stack("hpc", NEEDS.get(name, {}), site=name)
    assert stack.site == name
    assert [part.flavor for part in stack.components] == ["slurm", "local"]
    assert orchestrator(stack)["synchronous"] is False, "run.py shows the run itself, or leaves it (--detach)"
    config = load_config(ROOT / "configs", overrides=stack.config_overrides())
    fine_tune = stack.settings.step("fine_tune")
    processes, nodes = config.training.processes, int(fine_tune.slurm["nodes"])
    gpus = fine_tune.resources.gpu_count or int(str(fine_tune.slurm.get("gres", "gpu:0")).removeprefix("gpu:"))
    assert processes == (gpus or 1), "on each node: one process a GPU, or one"
    assert config.training.batch_size % (nodes * processes) == 0
    assert fine_tune.slurm["time"].count(":") == 2, "a time is text, not YAML's number of base 60"


def test_jureca_is_as_in_the_tutorial() -> None:
    stack = load_stack("hpc", {"HLS_ACCOUNT": "hai_foundry"}, site="jureca")
    asked = stack.settings.step("fine_tune").slurm
    assert {"partition": "dc-gpu", "gres": "gpu:4", "hint": "nomultithread", "account": "hai_foundry"}.items() <= asked.items()
    with pytest.raises(ConfigError, match=r"jureca\.yaml needs the environment variable HLS_ACCOUNT, .*jutil"):
        load_stack("hpc", {"HLS_ACCOUNT": ""}, site="jureca")


def test_without_a_site_it_is_the_rehearsal_where_one_is_up_else_cpu() -> None:
    assert load_stack("hpc", {}).site == "cpu"
    up = load_stack("hpc", {"HLS_REHEARSAL_SLURM_CONF": "/x/slurm.conf"})
    assert up.site == "rehearsal"
    assert orchestrator(up)["slurm_conf"] == "/x/slurm.conf"
    with pytest.raises(ConfigError, match=r"python run\.py cluster up") as caught:
        load_stack("hpc", {}, site="rehearsal")
    assert "\n" not in str(caught.value)


def test_a_site_changes_only_what_it_names(tmp_path: Path) -> None:
    stack = site(
        tmp_path,
        """
        components: [{type: orchestrator, configuration: {poll_s: 9}}]
        settings:
          slurm: {partition: big, environment: {B: three}}
          resources: {cpu_count: 8}
          steps: {fine_tune: {slurm: {time: 24:00:00}, resources: {gpu_count: 4}}}
        overrides: {training.accumulation: 2}
        """,
    )
    assert orchestrator(stack) == {"folder": "runs", "poll_s": 9}
    step = stack.settings.step("fine_tune")
    assert step.slurm == {"time": "24:00:00", "environment": {"A": "one", "B": "three"}, "partition": "big", "nodes": 2}
    assert (step.resources.cpu_count, step.resources.memory, step.resources.gpu_count) == (8, "4GB", 4)
    assert step.retry is not None
    assert step.retry.max_retries == 1
    assert stack.settings.step("validate").slurm["time"] == "01:00:00"
    assert stack.config_overrides() == ("training.processes=2", "training.accumulation=2")


def test_a_variable_left_empty_leaves_the_key_out(tmp_path: Path) -> None:
    overlay = "settings: {slurm: {account: '${HLS_ACCOUNT:-}', partition: '${HLS_PARTITION:-}'}}"
    assert site(tmp_path, overlay, HLS_PARTITION="big").settings.slurm.keys() >= {"partition", "time"}
    assert "account" not in site(tmp_path, overlay, HLS_ACCOUNT="").settings.slurm
    assert "account" not in load_stack("hpc", {}).settings.slurm


def test_numbers_from_variables_and_text_are_what_set_takes(tmp_path: Path) -> None:
    overlay = "overrides: {training.processes: '${P}', training.learning_rate: 1e-4, data.source: 'hf://a/b', training.flips: no}"
    stack = site(tmp_path, overlay, P="4")
    config = load_config(ROOT / "configs", overrides=stack.config_overrides())
    assert (config.training.processes, config.training.learning_rate, config.training.flips) == (4, 1e-4, False)
    assert config.data.source == "hf://a/b"
    assert load_config(ROOT / "configs", overrides=(*stack.config_overrides(), "training.processes=2")).training.processes == 2


def test_unknown_sites_and_sites_of_other_stacks_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no site 'jurecca'.*known sites: cpu, gpu, jureca, rehearsal"):
        load_stack("hpc", {}, site="jurecca")
    with pytest.raises(ConfigError, match=r"no site .\.\./local."):
        load_stack("hpc", {}, site="../local")
    with pytest.raises(ConfigError, match="stack 'local' has no sites: leave out --site cpu"):
        load_stack("local", {}, site="cpu")


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ("settings: {resorces: {}}", r"mine\.yaml: 'settings\.resorces': unknown key: did you mean 'resources'\?"),
        ("settings: {steps: {fine_tune: {slrm: {}}}}", r"mine\.yaml: 'settings\.steps\.fine_tune\.slrm': .*'slurm'"),
        ("settings: {steps: {fine_tune: {retry: {max_retrys: 1}}}}", r"mine\.yaml: .*did you mean 'max_retries'"),
        ("settings: {resources: {memory: lots}}", r"mine\.yaml: 'settings\.resources\.memory': .*pattern"),
        ("components: [{type: orchestrator, configration: {}}]", r"mine\.yaml: .*did you mean 'configuration'"),
        ("components: [{type: orchestra, flavor: slurm}]", r"mine\.yaml: 'components\.2\.type'"),
        ("components: [7]", r"mine\.yaml: 'components\.0'"),
        ("overrides: {training.proceses: 2}", r"mine\.yaml: 'overrides\.training\.proceses': .*did you mean 'processes'"),
        ("overrides: {training.processes.all: 2}", "it has no keys below it"),
        ("name: other", r"mine\.yaml: 'name': unknown key"),
        ("sits: true", "did you mean 'sites'"),
        ("- 1", "must hold a mapping"),
    ],
)
def test_a_wrong_site_file_is_one_line_that_names_it(tmp_path: Path, overlay: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        site(tmp_path, overlay)
    assert "\n" not in str(caught.value)
