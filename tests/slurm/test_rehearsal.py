"""The rehearsal cluster is a real one: it runs jobs, breaks as real ones do, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cli import cluster as cluster_commands
from hls_foundry.errors import SlurmError
from stacks.rehearsal.processes import Process, wait_until
from stacks.slurm import rehearsal_processes
from stacks.slurm.rehearsal import Cluster
from stacks.slurm.rehearsal_config import default_shape
from stacks.slurm.rehearsal_processes import daemons_of, job_processes_of, missing_programs
from stacks.slurm.rehearsal_record import write_record
from tests.conftest import ROOT, missing

MakeCluster = Callable[..., Cluster]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give nodes names and networks of their own")
UP = "import sys; sys.path.insert(0, sys.argv[1]); from cli import cluster; cluster.up()"
# Without click, ZenML or the project's environment: another user may not be allowed to read that.
UP_AND_RUN = """
import os, subprocess, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from stacks.slurm.rehearsal import Cluster
from stacks.slurm.rehearsal_config import default_shape
cluster = Cluster(Path(sys.argv[2]), default_shape(cpus=2, memory_mb=1024), print)
cluster.up()
try:
    subprocess.run(["srun", "-N2", "id", "-u"], env={**os.environ, **cluster.environment}, cwd=sys.argv[2], check=True, timeout=60)
finally:
    cluster.down()
"""


def slurm(cluster: Cluster, *command: str) -> str:
    done = subprocess.run(
        command, env={**os.environ, **cluster.environment}, cwd="/", capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def submit(cluster: Cluster, folder: Path, script: str, *options: str) -> tuple[int, Path]:
    """The job's id and its log."""
    path = folder / "job.sh"
    path.write_text(f"#!/bin/bash\n{script}\n")
    log = folder / "log"
    return int(slurm(cluster, "sbatch", "--parsable", f"--output={log}", "--open-mode=append", *options, str(path))), log


def state(cluster: Cluster, job: int) -> str:
    return slurm(cluster, "squeue", "-h", "-j", str(job), "--states=all", "-o", "%T").strip()


def says(log: Path, words: str) -> Callable[[], bool]:
    return lambda: log.exists() and words in log.read_text()


def assert_nothing_left(cluster: Cluster, folder: Path) -> None:
    assert not daemons_of(folder)
    assert not job_processes_of(folder)
    assert not folder.exists()
    assert cluster.record is None
    assert {path.name for path in cluster.home.iterdir()} == {"lock"}


def test_a_job_runs_on_two_nodes_at_once(slurm_cluster: Cluster) -> None:
    nodes = slurm(slurm_cluster, "srun", "--nodes=2", "--ntasks-per-node=1", "bash", "-c", "echo $SLURMD_NODENAME").split()
    assert sorted(nodes) == slurm_cluster.nodes == ["n1", "n2"]
    assert slurm_cluster.node_states().keys() == {"n1", "n2"}


@as_root
def test_nodes_have_names_of_their_own_that_resolve(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(network="hosts")
    if cluster.record and cluster.record.shape.network == "none":
        missing("no right to make namespaces here")
    said = slurm(cluster, "srun", "--nodes=2", "--ntasks-per-node=1", "bash", "-c", "hostname; getent hosts n1 n2 | tr -s ' ' =")
    assert sorted(said.split()) == ["127.0.1.1=n1"] * 2 + ["127.0.1.2=n2"] * 2 + ["n1", "n2"]
    assert socket.gethostname() not in ("n1", "n2")


@as_root
def test_isolated_nodes_reach_each_other_and_nothing_outside(make_cluster: MakeCluster) -> None:
    first, second = make_cluster(network="isolated"), make_cluster(network="isolated", nodes=1)
    routes = slurm(first, "srun", "--nodes=2", "--ntasks-per-node=1", "bash", "-c", "ip route get 8.8.8.8 2>&1; hostname")
    assert routes.count("unreachable") == 2, routes
    assert "n1" in routes
    assert "n2" in routes
    record = first.record
    assert record
    assert second.record
    assert record.subnet != second.record.subnet
    port = int(re.findall(r"NodeName=n2 .* Port=(\d+)", first.slurm_conf.read_text())[0])
    address = first.addresses()["n2"]
    reach = f"exec 3<>/dev/tcp/{address}/{port} && echo reached"
    assert slurm(first, "srun", "-w", "n1", "bash", "-c", reach) == "reached\n"
    first.partition_network("n2")
    with pytest.raises(OSError, match=r"timed out|No route"):
        socket.create_connection((address, port), timeout=0.5)
    first.heal_network("n2")
    socket.create_connection((address, port), timeout=10).close()
    spaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert record.identity in spaces
    first.down()
    spaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert record.identity not in spaces
    assert second.node_states() == {"n1": "idle"}


def test_pretended_gpus_are_shared_out(make_cluster: MakeCluster) -> None:
    if os.geteuid() != 0 and not Path("/dev/tty1").is_char_device():
        missing("no devices that can stand for GPUs")
    cluster = make_cluster(gpus=2, nodes=1)
    assert slurm(cluster, "srun", "--gpus-per-node=2", "bash", "-c", "echo $CUDA_VISIBLE_DEVICES") == "0,1\n"


def test_up_again_says_so_and_another_shape_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_cluster: MakeCluster
) -> None:
    monkeypatch.setenv("HLS_FOUNDRY_HOME", str(tmp_path))
    cluster_commands.status()
    assert "no rehearsal cluster is up: " in capsys.readouterr().out
    try:
        cluster_commands.up(nodes=1, cpus=3)
        folder = Cluster(tmp_path, default_shape()).folder
        assert f"export SLURM_CONF={folder}" in capsys.readouterr().out
        cluster_commands.up()  # options left out are as they are
        assert "is up already: 1 nodes with 3 CPUs" in capsys.readouterr().out
        with pytest.raises(SlurmError, match=r"is up already: 1 nodes with 3 CPUs.*cluster down, then up"):
            cluster_commands.up(nodes=2)
        cluster_commands.status()
        assert "n1  idle  127." in capsys.readouterr().out
    finally:
        cluster_commands.down()
    assert_nothing_left(Cluster(tmp_path, default_shape()), folder)
    cluster_commands.down()
    assert "no rehearsal cluster is up" in capsys.readouterr().out


def test_two_at_work_in_one_home_are_refused(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(nodes=1)
    with cluster._locked(), pytest.raises(SlurmError, match="another cluster up or down is at work in"):
        cluster.down()


def test_a_cluster_that_died_is_cleaned_up_and_started_anew(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(nodes=1)
    record, folder = cluster.record, cluster.folder
    assert record
    for process in record.processes.values():
        os.kill(process.pid, signal.SIGKILL)
    assert wait_until(lambda: not cluster.running, 5)
    # As after a reboot: its numbers are other processes' by now.
    mine = Process.of(os.getpid())
    assert mine
    reused = {name: replace(process, pid=mine.pid) for name, process in record.processes.items()}
    write_record(cluster.home, replace(record, processes=reused))
    said: list[str] = []
    again = Cluster(cluster.home.parent, cluster.shape, said.append)
    again.up()
    assert said[0] == "removed what was left of a rehearsal cluster that is gone"
    assert again.folder != folder
    assert not folder.exists()
    assert again.node_states() == {"n1": "idle"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_start_leaves_nothing(number: signal.Signals, tmp_path: Path, slurm_cluster: Cluster) -> None:
    environment = {**os.environ, "HLS_FOUNDRY_HOME": str(tmp_path), "TMPDIR": "/tmp"}
    start = subprocess.Popen([sys.executable, "-c", UP, str(ROOT)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    cluster = Cluster(tmp_path, default_shape())
    try:
        while cluster.record is None or not cluster.record.processes:
            assert start.poll() is None
        folder = cluster.folder
        start.send_signal(number)
        assert start.wait(30) != 0
        if number == signal.SIGKILL:
            assert folder.exists()
            cluster.down()
        assert_nothing_left(cluster, folder)
    finally:
        start.kill()
        start.wait()
        cluster.down()


def test_a_failed_start_says_why_and_keeps_its_logs(tmp_path: Path, slurm_cluster: Cluster) -> None:
    cluster = Cluster(tmp_path, default_shape(nodes=1, settings={"SelectType": "select/no_such"}))
    with pytest.raises(SlurmError, match=r"did not start: .*select/no_such.* \(logs: ") as failure:
        cluster.up()
    assert "\n" not in str(failure.value)
    assert cluster.record is None
    logs = Path(str(failure.value).partition("(logs: ")[2].rstrip(")"))
    assert (logs / "munged.log").exists()


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(rehearsal_processes, "SYSTEM_FOLDERS", ())
    with pytest.raises(
        SlurmError, match=r"munged, slurmctld, slurmd, sbatch not found: install Debian's munge slurm-wlm \(.*make system\)"
    ):
        Cluster(tmp_path, default_shape(network="none")).up()


@pytest.mark.parametrize(
    ("given", "line"),
    [({"nodes": 0}, "nodes cannot be 0"), ({"gpus": -1}, "gpus cannot be -1"), ({"network": "wifi"}, "network cannot be 'wifi'")],
)
def test_impossible_shapes_are_refused(given: dict[str, object], line: str) -> None:
    with pytest.raises(SlurmError, match=line):
        default_shape(**given)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, default_shape())
    cluster.home.mkdir()
    record = cluster.home / "cluster.json"
    for content in ("{", json.dumps({"folder": str(tmp_path)})):
        record.write_text(content)
        with pytest.raises(SlurmError, match=r"cluster\.json is damaged"):
            cluster.down()


def test_a_record_that_names_a_strangers_folder_deletes_nothing(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster(nodes=1)
    record = cluster.record
    assert record
    write_record(cluster.home, replace(record, folder=str(tmp_path)))
    with pytest.raises(SlurmError, match=r"cluster\.json is damaged"):
        cluster.down()
    assert tmp_path.exists()
    write_record(cluster.home, record)


def test_steps_that_outlive_their_slurmd_end_with_the_cluster(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster(nodes=1)
    _, log = submit(cluster, tmp_path, "trap '' TERM; echo works; sleep 300; sleep 300")
    assert wait_until(says(log, "works"), 20)
    folder = cluster.folder
    assert job_processes_of(folder)
    cluster.kill_slurmd("n1")
    cluster.stop_controller(kill=True)
    assert cluster.dead_daemons() == ["slurmctld", "n1"]
    assert job_processes_of(folder)
    cluster.down()
    assert_nothing_left(cluster, folder)


def test_up_starts_what_was_killed_and_jobs_go_on_meanwhile(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster(nodes=2)
    done = tmp_path / "done"
    job, log = submit(cluster, tmp_path, f"echo works; while [ ! -e {done} ]; do sleep 0.1; done; echo ends")
    assert wait_until(says(log, "works"), 20)
    cluster.stop_controller()
    cluster.start_controller()
    cluster.kill_slurmd("n2")
    assert cluster.dead_daemons() == ["n2"]
    cluster.up()
    assert cluster.dead_daemons() == []
    assert state(cluster, job) == "RUNNING"
    done.touch()
    assert wait_until(lambda: state(cluster, job) == "COMPLETED", 20), state(cluster, job)
    assert "ends" in log.read_text()


def test_a_job_of_the_urgent_partition_warns_and_replaces_a_batch_job_which_then_runs_again(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    cluster = make_cluster(nodes=1, cpus=2)
    saves = "trap 'echo warned; scontrol requeue $SLURM_JOB_ID' USR1; echo run ${SLURM_RESTART_COUNT:-0}"
    job, log = submit(
        cluster, tmp_path, f"{saves}; for i in $(seq 600); do sleep 0.1; done", "-c2", "--signal=B:USR1@60", "--time=10", "--requeue"
    )
    assert wait_until(says(log, "run 0"), 20)
    began = time.monotonic()
    urgent = tmp_path / "urgent"
    urgent.mkdir()
    submit(cluster, urgent, "echo urgent", "-c2", "-p", "urgent")
    assert wait_until(says(log, "warned"), 20)
    assert wait_until(says(urgent / "log", "urgent"), 40)
    assert wait_until(says(log, "run 1"), 40), state(cluster, job)
    assert time.monotonic() - began < 60


def test_a_normal_user_has_a_cluster_of_its_own(tmp_path: Path) -> None:
    if what := missing_programs(("munged", "slurmctld", "slurmd", "sbatch")):
        missing(what)
    python = "/usr/bin/python3"
    if os.geteuid() != 0:
        pytest.skip("all other tests run as a normal user here")
    if not Path(python).exists() or subprocess.run([python, "-c", "import tomllib"], capture_output=True, check=False).returncode:
        missing("no Python 3.11 that other users may run")
    home = Path("/tmp") / f"hls-nobody-{os.getpid()}"  # pytest's own folders are root's
    home.mkdir()
    try:
        os.chown(home, 65534, 65534)
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", python, "-B", "-c", UP_AND_RUN, str(ROOT), str(home)]
        done = subprocess.run(
            command, cwd="/", env={"PATH": os.environ["PATH"], "HOME": str(home)}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("65534\n") == 2
        assert "network none" in done.stdout
        assert "the rehearsal cluster is down" in done.stdout
    finally:
        shutil.rmtree(home)


@as_root
def test_without_the_right_to_make_namespaces_nodes_share_the_host(tmp_path: Path, slurm_cluster: Cluster) -> None:
    less = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", sys.executable, "-c", UP, str(ROOT)]
    environment = {**os.environ, "HLS_FOUNDRY_HOME": str(tmp_path)}
    cluster = Cluster(tmp_path, default_shape())
    try:
        done = subprocess.run(less, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[0].startswith("nodes cannot have host names of their own here")
        assert cluster.record
        assert cluster.record.shape.network == "none"
        isolated = [*less[:-2], UP.replace("up()", "up(network='isolated')"), str(ROOT)]
        cluster.down()
        done = subprocess.run(isolated, env=environment, capture_output=True, text=True, check=False)
        assert "SlurmError: network 'isolated' needs the right to make namespaces" in done.stderr
    finally:
        cluster.down()
