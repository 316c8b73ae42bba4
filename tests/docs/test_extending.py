"""What docs/extending says, done in a copy of the repository: a third task, an encoder, a stack and a site, by configuration alone."""

from __future__ import annotations

import os
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from stacks.slurm.rehearsal import Cluster
from tests.docs.pages import ROOT, commands, copy_repository, write_what_it_says

PAGES = ROOT / "docs" / "extending"
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


class Reader:
    """Somebody with a copy of the repository and a home of their own, who follows pages."""

    def __init__(self, folder: Path) -> None:
        folder.joinpath("repository").mkdir()
        self.repository = copy_repository(folder / "repository")
        places = {"HLS_FOUNDRY_HOME": str(folder / "foundry"), "ZENML_CONFIG_PATH": str(folder / "zenml")}
        self.environment = {**{name: value for name, value in os.environ.items() if name != "PYTHONPATH"}, **places}

    def follow(self, page: str, *, but: str = "no command", **environment: str) -> list[str]:
        """Write what the page says and type its commands, except those that end with `but`; what each printed."""
        write_what_it_says(PAGES / page, self.repository)
        typed = [command for command in commands(PAGES / page) if not command.endswith(but)]
        assert typed
        return [self.type(command, **environment) for command in typed]

    def type(self, command: str, **environment: str) -> str:
        variables = {**self.environment, **environment}
        answer = subprocess.run(["bash", "-c", command], cwd=self.repository, env=variables, capture_output=True, text=True, timeout=300)
        assert answer.returncode == 0, f"{command}\n{answer.stdout[-3000:]}\n{answer.stderr[-3000:]}"
        return answer.stdout


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    made = Reader(tmp_path_factory.mktemp("reader"))
    yield made
    for name in ("forest", "forest-team"):
        subprocess.run(
            [".venv/bin/python", "run.py", "endpoints", "--delete", name], cwd=made.repository, env=made.environment, capture_output=True
        )


@pytest.fixture(scope="module")
def task(reader: Reader) -> list[str]:
    """add-a-task.md, but for the full run at its end."""
    return reader.follow("add-a-task.md", but="run.py --task forest")


def test_a_third_task_goes_through_the_whole_local_stack(reader: Reader, task: list[str]) -> None:
    looked, ran = task
    assert "task 'forest'" in looked
    assert "NDVI baseline" in ran
    assert "model       forest version 1 (production)" in ran
    assert re.search(r"0 errors, agreement (1\.0|0\.9999)", ran)
    url = re.search(r"forest answers at (http://\S+) with version 1", ran).group(1)  # type: ignore[union-attr]
    chip = next(Path(reader.environment["HLS_FOUNDRY_HOME"], "data").rglob("*_merged.tif"))
    request = urllib.request.Request(f"{url}/invocations", data=chip.read_bytes(), headers={"Content-Type": "image/tiff"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        body = reply.read().decode()
    assert '"FeatureCollection"' in body
    assert not re.search("burn|water", body)
    (report,) = Path(reader.environment["HLS_FOUNDRY_HOME"], "runs").glob("forest-deploy-*/report.html")
    text = report.read_text(encoding="utf-8")
    assert "IoU of forest" in text
    assert not re.search("burn scar|water", text, re.I)


def test_a_stack_of_ones_own_deploys_under_its_own_name(reader: Reader, task: list[str]) -> None:
    checked, deployed, listed = reader.follow("add-a-stack.md", TEAM_FOLDER=str(reader.repository / "shared"))
    assert "FAIL" not in checked
    assert "forest-team answers at" in deployed
    assert {"forest", "forest-team"} <= {line.split()[0] for line in listed.splitlines() if line}


def test_an_encoder_of_another_size_is_one_line(reader: Reader, task: list[str]) -> None:
    (ran,) = reader.follow("add-a-backbone.md")
    assert "model       forest version 2" in ran


def test_a_site_is_read_and_its_cluster_asked(reader: Reader, slurm_cluster: Cluster) -> None:
    looked, checked = reader.follow("add-a-site.md", but="--detach", SLURM_CONF=str(slurm_cluster.slurm_conf))
    assert "stack 'hpc'" in looked
    assert "stacks/sites/mine.yaml" in checked
    assert "FAIL" not in checked
