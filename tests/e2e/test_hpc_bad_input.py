"""Bad input to `--stack hpc`: one line that says what, where and what to do; exit 2; nothing queued and nothing half-written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from stacks.rehearsal.ports import free_ports
from stacks.slurm.rehearsal_network import can_name_hosts
from tests.conftest import ROOT, missing
from tests.e2e.login_node import LoginNode, ended, on_a_cluster

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

TREE = ("cli", "configs", "hls_foundry", "pipelines", "stacks", "steps", "run.py")
SECRET = "ZENKEY_of_somebody_else"


@pytest.fixture(scope="module")
def login(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoginNode]:
    """On a cluster of two nodes with many CPUs and little memory."""
    with on_a_cluster(LoginNode(tmp_path_factory.mktemp("login")), "--nodes", "2", "--cpus", "16", "--memory", "3300") as on_cluster:
        yield on_cluster


@pytest.fixture(scope="module")
def copy(login: LoginNode, tmp_path_factory: pytest.TempPathFactory) -> LoginNode:
    """The same user with a copy of the code, to edit its site file."""
    tree = tmp_path_factory.mktemp("tree")
    for name in TREE:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tree / name)
    return LoginNode(login.folder, tree=tree)


def refused_with(copy: LoginNode, old: str, new: str) -> str:
    """The one line about a site file in which `old` became `new`."""
    site = copy.tree / "stacks" / "sites" / "rehearsal.yaml"
    before = site.read_text()
    assert old in before
    site.write_text(before.replace(old, new))
    try:
        return refused(copy)
    finally:
        site.write_text(before)


@pytest.fixture(scope="module", autouse=True)
def unanswered(login: LoginNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """run.py, asking a controller that is not there while the other tests go on."""
    other = LoginNode(tmp_path_factory.mktemp("down"))
    conf = other.folder / "slurm.conf"
    here = login.cluster.slurm_conf
    conf.write_text(re.sub(r"SlurmctldPort=\d+", f"SlurmctldPort={free_ports(1)[0]}", here.read_text()))
    with other.start(*other.hpc(), HLS_REHEARSAL_SLURM_CONF=str(conf)) as process:
        yield process
        process.kill()


def refused(login: LoginNode, *arguments: str, **environment: str) -> str:
    """The one line that run.py ends with."""
    return refused_by(login, login.start(*login.hpc(*arguments), **environment))


def refused_by(login: LoginNode, process: subprocess.Popen[str]) -> str:
    """The one line that this run.py ends with; nothing is queued, and no folder of a run is left."""
    answer = ended(process, expect=2)
    assert "Traceback" not in answer.stdout + answer.stderr
    lines = [line for line in (answer.stdout + answer.stderr).splitlines() if line.startswith("error")]
    assert len(lines) == 1, lines
    assert answer.stderr.splitlines()[-1] == lines[0], "the line is the last one"
    assert login.slurm("squeue", "--noheader", "--states=all") == ""
    assert not [path for path in (login.home / "slurm").glob("*") if path.is_dir()]
    assert not [path for path in login.home.rglob("*") if "partial" in path.name or path.name.endswith(".tmp")]
    return lines[0]


def test_another_shape_while_a_cluster_is_up(login: LoginNode) -> None:
    told = login.run("cluster", "up", "--nodes", "3", expect=2).stderr
    assert re.fullmatch(r"error: a rehearsal cluster is up already: 2 nodes with 16 CPUs.*: python run.py cluster down, then up\n", told)
    assert "is up already" in login.run("cluster", "up").stdout


def test_an_unknown_site_and_no_cluster_up(login: LoginNode, tmp_path: Path) -> None:
    assert "known sites: cpu, gpu, jureca, rehearsal" in refused(login, "--site", "juwels")
    other = LoginNode(tmp_path)
    told = other.run(*other.hpc("--site", "rehearsal"), expect=2).stderr
    assert told.count("\n") == 1
    assert "start one with python run.py cluster up" in told


def test_no_slurm_commands_on_the_path(login: LoginNode, tmp_path: Path) -> None:
    line = refused(login, PATH=str(tmp_path))
    assert re.search(r"no \w+ on the PATH of this machine: go to a login node", line), line


def test_an_unknown_partition_and_more_memory_than_there_is(login: LoginNode) -> None:
    conf = {"SLURM_CONF": str(login.cluster.slurm_conf)}
    assert "partition 'dc-gpu', which this cluster does not have" in refused(login, "--site", "cpu", HLS_PARTITION="dc-gpu", **conf)
    assert re.search(r"asks for \d+ MiB a node.*3300 MiB at most", refused(login, "--site", "cpu", **conf))


def test_more_nodes_than_there_are_and_an_unknown_key_in_a_site_s_file(copy: LoginNode) -> None:
    assert "step 'fine_tune' asks for 3 nodes, but partition 'batch' has 2" in refused_with(copy, "nodes: 2", "nodes: 3")
    line = refused_with(copy, "partition: batch", "partiton: batch")
    assert "rehearsal.yaml" in line
    assert "'partiton' (the nearest known one is 'partition')" in line


def test_a_run_folder_that_cannot_be_written(login: LoginNode) -> None:
    place = login.home / "slurm"
    place.write_text("a file where a folder should be")
    try:
        assert f"{place} cannot be written" in refused(login)
    finally:
        place.unlink()


def test_a_disk_that_fills_up_during_submission(login: LoginNode) -> None:
    if os.geteuid() != 0 or not can_name_hosts():
        missing("a small file system of its own needs root, and its right to mount")
    place = login.home / "slurm"
    place.mkdir()
    # Room enough for what is looked at beforehand, but not for as many files as the code has.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2g,nr_inodes=100", "tmpfs", str(place)], check=True)
    try:
        line = refused(login)
        assert re.search(r"No space left|space", line), line
        assert list(place.iterdir()) == []
    finally:
        subprocess.run(["umount", str(place)], check=True)
        place.rmdir()


def test_a_wrong_store_and_a_wrong_key(login: LoginNode) -> None:
    nobody = f"http://127.0.0.1:{free_ports(1)[0]}"
    assert nobody in refused(login, ZENML_STORE_URL=nobody)
    server = HTTPServer(("127.0.0.1", 0), RefusesKeys)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        line = refused(login, ZENML_STORE_URL=f"http://127.0.0.1:{server.server_port}", ZENML_STORE_API_KEY=SECRET)
    finally:
        server.shutdown()
        server.server_close()
    assert "refused" in line
    assert SECRET not in line


def test_a_cluster_that_is_down_is_told_within_bounds(login: LoginNode, unanswered: subprocess.Popen[str]) -> None:
    line = refused_by(login, unanswered)
    assert "the Slurm cluster does not answer on this machine" in line
    assert "tried for up to 60 s" in line
    assert "scontrol ping" in line


class RefusesKeys(BaseHTTPRequestHandler):
    """What a ZenML server answers to somebody whom it does not know."""

    def do_GET(self) -> None:
        from importlib.metadata import version

        self._answer(200, f'{{"id": "1", "version": "{version("zenml")}"}}')

    def do_POST(self) -> None:
        self._answer(401, '{"detail": "unknown key"}')

    def _answer(self, status: int, body: str) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Not to standard error."""


def test_nothing_that_was_refused_is_left_running_in_zenml(login: LoginNode) -> None:
    listed = login.run("status").stdout
    assert not re.search(r"running|initializing|provisioning", listed), listed
