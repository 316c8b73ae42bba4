"""What configuration files may say, and what a wrong one is told."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hls_foundry.config import load_config
from hls_foundry.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"


def test_without_arguments_the_demo_lies_on_the_burn_scar_recipe() -> None:
    config = load_config(CONFIGS)
    assert config.task.name == "burn_scars"
    assert config.data.source.startswith("synthetic://")
    assert config.model.weights == "none"


def test_own_data_takes_the_published_recipe() -> None:
    config = load_config(CONFIGS, task="flood", source="somewhere")
    assert (config.model.variant, config.training.loss, config.data.source) == ("v1_100", "cross_entropy", "somewhere")


def test_demo_overlay_on_own_data() -> None:
    config = load_config(CONFIGS, task="flood", file=CONFIGS / "demo.yaml", source="somewhere")
    assert (config.task.name, config.model.variant, config.data.source) == ("flood", "v2_tiny_tl", "somewhere")


def test_set_takes_yaml_values_and_numbers_as_people_write_them() -> None:
    config = load_config(
        CONFIGS, overrides=("training.learning_rate=1e-4", "data.bands=[2, 3, 4, 9, 12, 13]", "training.class_weights=null")
    )
    assert config.training.learning_rate == 1e-4
    assert config.data.bands == (2, 3, 4, 9, 12, 13)
    assert config.training.class_weights is None


def test_a_file_with_its_own_task_stands_alone(tmp_path: Path) -> None:
    own = tmp_path / "lakes.yaml"
    own.write_text((CONFIGS / "flood.yaml").read_text().replace("name: flood", "name: lakes"))
    assert load_config(CONFIGS, file=own).task.name == "lakes"
    with pytest.raises(ConfigError, match=r"is for task 'lakes', not 'flood'"):
        load_config(CONFIGS, file=own, task="flood")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("trainnig.epochs=3",), "unknown key 'trainnig'"),
        (("training.epoch=3",), "unknown key 'training.epoch'"),
        (("training.epochs=0",), "'training.epochs'"),
        (("training.epochs",), "write KEY=VALUE"),
        (("model.variant=v9",), "'model.variant'"),
        (("training.batch_size=7", "training.processes=2"), "multiple of processes"),
        (("model.variant=v2_300", "model.coordinates=true"), "needs a _tl variant"),
        (("inference.overlap=[1,",), "not a YAML value"),
    ],
)
def test_wrong_settings_are_one_line_that_names_the_key(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load_config(CONFIGS, overrides=overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), ("a: [", "not valid YAML"), ("- 1", "must hold a mapping"), ("task: {name: lakes}", "is missing")],
)
def test_wrong_files_are_one_line_that_names_the_file(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "mine.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(CONFIGS, file=file)
    assert "mine.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_task_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="known tasks: burn_scars, flood"):
        load_config(CONFIGS, task="snow")


def test_configuration_page_is_what_the_code_says(tmp_path: Path) -> None:
    code = "import runpy,sys; print(runpy.run_path(sys.argv[1])['page'](), end='')"
    made = subprocess.run(
        [sys.executable, "-c", code, ROOT / "docs" / "write_configuration.py"], capture_output=True, text=True, check=True
    ).stdout
    assert (ROOT / "docs" / "configuration.md").read_text() == made, "run make docs"
