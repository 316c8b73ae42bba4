"""Refused before anything is submitted, on a real cluster: what it has not, or could never start."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hls_foundry.errors import ConfigError
from stacks.slurm.client import Slurm
from stacks.slurm.preflight import Request, _account_problem, _gres, check_folder, check_requests
from stacks.slurm.records import Association
from stacks.slurm.rehearsal import PROGRAMS, Cluster
from stacks.slurm.rehearsal_config import default_shape
from stacks.slurm.rehearsal_processes import missing_programs
from stacks.slurm.script import Resources
from stacks.slurm.settings import SlurmSettings
from stacks.slurm.transport import LocalTransport
from tests.conftest import missing


def scontrol(cluster: Cluster, *arguments: str) -> None:
    subprocess.run(["scontrol", *arguments], env={**os.environ, **cluster.environment}, check=True, timeout=30, capture_output=True)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes with 4 GPUs: n3 is down, n1 has features; partitions batch, urgent (all), small (n1, 30 minutes), closed (down)."""
    if what := missing_programs(PROGRAMS):
        missing(what)
    cluster = Cluster(tmp_path_factory.mktemp("slurm"), default_shape(nodes=3, cpus=4, memory_mb=2048, gpus=4))
    cluster.up()
    scontrol(cluster, "update", "NodeName=n1", "AvailableFeatures=big,ib", "ActiveFeatures=big,ib")
    scontrol(cluster, "update", "NodeName=n3", "State=DOWN", "Reason=test")
    scontrol(cluster, "create", "PartitionName=small", "Nodes=n1", "MaxTime=30", "State=UP", "AllowQos=quick", "AllowAccounts=water,snow")
    scontrol(cluster, "create", "PartitionName=closed", "Nodes=n2", "State=DOWN")
    yield cluster
    cluster.down()


@pytest.fixture(scope="module")
def slurm(cluster: Cluster) -> Slurm:
    return Slurm(LocalTransport(cluster.environment))


def check(slurm: Slurm, resources: Resources = Resources(), **settings: Any) -> None:  # noqa: B008  (frozen)
    check_requests(slurm, {"fine_tune": Request("fine_tune", SlurmSettings(**settings), resources)})


@pytest.mark.parametrize(
    ("settings", "resources"),
    [
        ({}, Resources()),
        ({"partition": "batch", "nodes": 2, "time": "8-00:00:00"}, Resources(cpus=4, gpus=4, memory_mib=2048)),
        ({"partition": "closed,urgent"}, Resources(cpus=2.5)),
        ({"partition": "small", "time": "0:29:30", "constraint": "big&ib", "gres": "gpu:rehearsal:2"}, Resources()),
        ({"tasks_per_node": 2, "cpus_per_task": 2, "memory": "0"}, Resources(cpus=64)),
        ({"constraint": "big|huge", "account": "anything", "qos": "anything"}, Resources()),
    ],
)
def test_what_the_cluster_can_run_passes(slurm: Slurm, settings: dict[str, Any], resources: Resources) -> None:
    check(slurm, resources, **settings)


@pytest.mark.parametrize(
    ("settings", "resources", "words"),
    [
        ({"partition": "btach"}, Resources(), ("partition 'btach'", "did you mean 'batch'?", "batch, closed, small, urgent")),
        ({"partition": "closed"}, Resources(), ("partition 'closed', which is down",)),
        ({"nodes": 4}, Resources(), ("asks for 4 nodes, but partition 'batch' has 3", "slurm.nodes")),
        ({"nodes": 3}, Resources(), ("asks for 3 nodes, but of those of partition 'batch' 2 can be used (n3 down)",)),
        ({"nodes": 2, "partition": "small"}, Resources(), ("asks for 2 nodes, but partition 'small' has 1",)),
        ({}, Resources(cpus=5), ("asks for 5 CPUs a node", "4 CPUs at most", "cpu_count")),
        ({"tasks_per_node": 2, "cpus_per_task": 3}, Resources(), ("asks for 6 CPUs a node",)),
        ({"memory": "4GiB"}, Resources(), ("asks for 4096 MiB a node", "2048 MiB at most")),
        ({}, Resources(memory_mib=2049), ("asks for 2049 MiB a node",)),
        ({}, Resources(gpus=5), ("asks for 5 gpu a node", "gpu:rehearsal:4")),
        ({"gres": "gpu:a100:1"}, Resources(), ("asks for 1 gpu:a100 a node",)),
        ({"gres": "fpga"}, Resources(), ("asks for 1 fpga a node",)),
        ({"partition": "small", "time": "31"}, Resources(), ("asks for 0-00:31:00, but partition 'small' allows 0-00:30:00",)),
        ({"partition": "small,closed", "time": "31"}, Resources(), ("partition 'small' allows",)),
        ({"constraint": "bgi"}, Resources(), ("the feature 'bgi'", "did you mean 'big'?", "big, ib")),
        ({"constraint": "big", "nodes": 2}, Resources(), ("asks for 2 nodes with 'big', but partition 'batch' has 1",)),
        ({"constraint": "huge|vast"}, Resources(), ("asks for 1 nodes with 'huge|vast'",)),
        ({"constraint": "[big*1&vast*1]"}, Resources(), ("the feature 'vast'",)),
        ({"partition": "small", "account": "wter"}, Resources(), ("account 'wter', which partition 'small' does not take", "'water'")),
        ({"partition": "small", "qos": "slow"}, Resources(), ("qos 'slow', which partition 'small' does not take",)),
    ],
)
def test_what_it_cannot_is_one_line_that_names_the_step(
    slurm: Slurm, settings: dict[str, Any], resources: Resources, words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        check(slurm, resources, **settings)
    line = str(caught.value)
    assert line.startswith("step 'fine_tune' ")
    assert "\n" not in line
    for word in words:
        assert word in line


def test_slurm_itself_would_let_a_job_of_too_many_nodes_wait(slurm: Slurm, cluster: Cluster, tmp_path: Path) -> None:
    """Why this is checked here: sbatch takes the job, and it never starts."""
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/sh\n#SBATCH --nodes=3 --partition=batch --output={tmp_path}/log\ntrue\n")
    job = slurm.submit(str(script))
    try:
        assert not slurm.jobs([job])[job].state.finished
    finally:
        slurm.cancel([job])


def test_all_steps_are_checked_in_few_calls(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    run = slurm.transport.run
    monkeypatch.setattr(slurm.transport, "run", lambda command, **more: (calls.append(command[0]), run(command, **more))[1])
    requests = {f"s{number}": Request(f"s{number}", SlurmSettings(account="water"), Resources()) for number in range(40)}
    check_requests(slurm, requests)
    assert len(calls) <= 4, calls


def test_a_cluster_without_a_default_partition_wants_a_name(slurm: Slurm, cluster: Cluster) -> None:
    scontrol(cluster, "update", "PartitionName=batch", "Default=NO")
    try:
        with pytest.raises(ConfigError, match=r"names no partition, and this cluster has no default one: .* batch, closed, small, urgent"):
            check(slurm)
    finally:
        scontrol(cluster, "update", "PartitionName=batch", "Default=YES")


# ---- accounting (slurmdbd's answers as records) ----


def test_accounts_and_qos_are_those_of_the_user() -> None:
    mine = [Association("water", "", ("normal", "long")), Association("snow", "", ("normal",))]
    assert _account_problem(SlurmSettings(), mine) is None
    assert _account_problem(SlurmSettings(account="water", qos="long"), mine) is None
    assert _account_problem(SlurmSettings(account="ice"), []) is None, "without associations Slurm does not look"
    problem = _account_problem(SlurmSettings(account="watr"), mine)
    assert problem == "charges account 'watr', which is not yours: did you mean 'water'? (your accounts: snow, water)"
    assert _account_problem(SlurmSettings(account="snow", qos="long"), mine) is not None
    assert _account_problem(SlurmSettings(qos="long"), mine) is None


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("", {}),
        ("gpu:4", {"gpu": 4}),
        ("gpu:a100:4(S:0-1),shard:8", {"gpu": 4, "gpu:a100": 4, "shard": 8}),
        ("gpu:a100:2,gpu:h100:2", {"gpu": 4, "gpu:a100": 2, "gpu:h100": 2}),
        ("gres/gpu:v100", {"gpu": 1, "gpu:v100": 1}),
        ("craynetwork:4,lustre:2k", {"craynetwork": 4, "lustre": 2048}),
    ],
)
def test_generic_resources_are_counted_by_kind_and_type(text: str, counts: dict[str, int]) -> None:
    assert _gres(text) == counts


# ---- the run folder ----


def test_a_folder_that_is_not_there_yet_passes_and_is_not_made(tmp_path: Path) -> None:
    check_folder(tmp_path / "a" / "slurm", least_mib=1)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_below_a_file_or_without_room_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run folder .*file/slurm cannot be written \(Not a directory\)"):
        check_folder(tmp_path / "file" / "slurm")
    with pytest.raises(ConfigError, match=r"MiB free, and 1000000000 are needed"):
        check_folder(tmp_path, least_mib=10**9)
    with pytest.raises(ConfigError, match=r"cannot be written \("):
        check_folder(Path("/proc/hls/slurm"))


def test_a_full_disk_is_found_by_writing(tmp_path: Path) -> None:
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "hls-test", tmp_path], capture_output=True, text=True)
    if mount.returncode:
        missing(f"a small file system cannot be mounted here ({mount.stderr.strip()})")
    try:
        with pytest.raises(ConfigError, match=r"cannot be written \(No space left on device\): free space or quota there") as caught:
            check_folder(tmp_path / "slurm")
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)
