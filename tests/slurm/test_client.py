"""The Slurm client against a real cluster of its own, which these tests stop, start and make forget."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hls_foundry.errors import SlurmError
from stacks.slurm.client import Clock, Slurm
from stacks.slurm.records import Job
from stacks.slurm.rehearsal import PROGRAMS, Cluster
from stacks.slurm.rehearsal_config import Shape
from stacks.slurm.rehearsal_processes import missing_programs
from stacks.slurm.states import JobState
from stacks.slurm.transport import Completed, LocalTransport, SSHTransport
from tests.conftest import missing
from tests.slurm.sshd import running_sshd

Run = Callable[[Sequence[str]], Completed]


class Watched(LocalTransport):
    """The real transport; notes the commands, and lets a test lose a reply or a request."""

    def __init__(self, environment: dict[str, str]) -> None:
        super().__init__(environment)
        self.commands: list[list[str]] = []
        self.between: Callable[[Sequence[str], Run], Completed] = lambda command, run: run(command)

    def run(self, command: Sequence[str], *, input: bytes | None = None, timeout: float = 60) -> Completed:
        self.commands.append(list(command))
        real = super().run
        return self.between(command, lambda given: real(given, input=input, timeout=timeout))

    def count(self, name: str) -> int:
        return sum(command[0] == name for command in self.commands)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if what := missing_programs(PROGRAMS):
        missing(what)
    cluster = Cluster(tmp_path_factory.mktemp("home"), Shape(nodes=2, cpus=4, memory_mb=1024, network="none"))
    cluster.up()
    yield cluster
    cluster.down()


@pytest.fixture
def transport(cluster: Cluster) -> Watched:
    return Watched(cluster.environment)


@pytest.fixture
def slurm(transport: Watched) -> Slurm:
    return Slurm(transport, clock=Clock(sleep=lambda seconds: time.sleep(seconds / 10)))


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., Path]:
    def write(body: str, *options: str) -> Path:
        path = tmp_path / f"job-{len(list(tmp_path.iterdir()))}.sh"
        path.write_text("\n".join(["#!/bin/sh", "#SBATCH --output=/dev/null", *(f"#SBATCH {option}" for option in options), body, ""]))
        return path

    return write


def wait(slurm: Slurm, ids: Collection[int], reached: Callable[[Job], bool], seconds: float = 30) -> dict[int, Job]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        jobs = slurm.jobs(ids)
        if all(reached(job) for job in jobs.values()):
            return jobs
        time.sleep(0.1)
    raise AssertionError(f"not in {seconds} s: {jobs}")


def finished(job: Job) -> bool:
    return job.state.finished


def running(job: Job) -> bool:
    return job.state is JobState.RUNNING


def test_a_graph_of_jobs_ends_with_states_reasons_times_and_exit_codes(
    slurm: Slurm, transport: Watched, script: Callable[..., Path]
) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)
    fails = slurm.submit(script("sleep 1; exit 3", "--job-name='a | b'", "--comment='run 7; été'", "--time=5"))
    killed = slurm.submit(script("kill -9 $$", "--nodes=2", "--ntasks=2"))
    dependent = slurm.submit(script("true"), dependency=f"afterok:{fails}")
    anyway = slurm.submit(script("true"), dependency=f"afterany:{fails}:{dependent}")
    assert slurm.jobs([anyway])[anyway].reason == "Dependency"
    transport.commands.clear()
    jobs = wait(slurm, [fails, killed, dependent, anyway], finished)
    assert transport.count("squeue") == len(transport.commands), "one squeue a question, nothing else"

    job = jobs[fails]
    assert (job.state, job.reason, job.exit_code, job.signal) == (JobState.FAILED, "NonZeroExitCode", 3, 0)
    assert (job.name, job.comment, job.partition, job.time_limit_s) == ("a | b", "run 7; été", "batch", 300)
    assert job.submitted
    assert job.started
    assert job.ended
    assert before <= job.submitted <= job.started < job.ended <= datetime.now(UTC) + timedelta(seconds=2)
    assert job.elapsed_s == (job.ended - job.started).total_seconds()
    assert job.node_list in ("n1", "n2")
    assert (jobs[killed].state, jobs[killed].signal, jobs[killed].nodes, jobs[killed].cpus) == (JobState.FAILED, 9, 2, 2)
    assert (jobs[dependent].state, jobs[dependent].reason) == (JobState.CANCELLED, "DependencyNeverSatisfied")
    assert jobs[dependent].started is None
    assert jobs[anyway].state.ok


def test_cancel_takes_what_it_is_told_and_no_more(slurm: Slurm, script: Callable[..., Path]) -> None:
    runs, waits, stays = (slurm.submit(script("exec sleep 60")) for _ in range(3))
    wait(slurm, [runs, stays], running)
    held = slurm.submit(script("true"), hold=True)
    slurm.cancel([])
    slurm.cancel([runs, held], state=JobState.PENDING)
    jobs = slurm.jobs([runs, waits, stays, held])
    assert [jobs[job].state.finished for job in (runs, waits, stays, held)] == [False, False, False, True]
    assert jobs[held].started is None
    slurm.cancel([runs, waits, stays])
    jobs = wait(slurm, [runs, waits, stays], finished)
    assert {(job.state, job.signal) for job in jobs.values()} == {(JobState.CANCELLED, 15)}
    slurm.cancel([runs, waits, stays, 4_000_000])  # gone and unknown ones are passed over


def test_a_signal_reaches_the_batch_script(slurm: Slurm, script: Callable[..., Path]) -> None:
    job = slurm.submit(script("trap 'exit 7' USR1\nsleep 60 &\nwait"))
    wait(slurm, [job], running)
    time.sleep(0.5)  # until the trap is set
    slurm.cancel([job], signal="USR1", full=True)
    assert wait(slurm, [job], finished)[job].exit_code == 7


def test_a_requeued_job_is_pending_again_and_counts_its_restart(slurm: Slurm, script: Callable[..., Path]) -> None:
    job = slurm.submit(script("exec sleep 60", "--requeue"))
    wait(slurm, [job], running)
    slurm.requeue(job)
    found = wait(slurm, [job], lambda job: job.state is JobState.PENDING)[job]
    assert (found.restarts, found.started, found.ended) == (1, None, None)
    slurm.cancel([job])
    with pytest.raises(SlurmError, match=r"cannot requeue job 4000000: .*Invalid job id"):
        slurm.requeue(4_000_000)


def test_a_held_job_waits_for_its_release(slurm: Slurm, script: Callable[..., Path]) -> None:
    job = slurm.submit(script("true"), hold=True)
    assert slurm.jobs([job])[job].reason == "JobHeldUser"
    slurm.release([job])
    assert wait(slurm, [job], finished)[job].state.ok


def test_users_habits_do_not_change_answers(slurm: Slurm, script: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SQUEUE_STATES": "RUNNING",
        "SQUEUE_PARTITION": "nope",
        "SBATCH_PARTITION": "nope",
        "SLURM_TIME_FORMAT": "%H",
    }.items():
        monkeypatch.setenv(name, value)
    job = slurm.submit(script("true"), hold=True)
    found = slurm.jobs([job])[job]
    assert found.state is JobState.PENDING
    assert found.submitted
    assert abs(datetime.now(UTC) - found.submitted) < timedelta(minutes=1)
    slurm.cancel([job])


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--partition=nope", "no partition 'nope'"),
        ("-p nope", "no partition 'nope'"),
        ("--constraint=fast", "no node has feature 'fast'"),
        ("--gres=tpu:1", r"gres asked for \('tpu:1'\)"),
        ("--mem=80G", r"memory asked for \('80G'\)"),
        ("--gres=gpu:8", r"like this \(.*gres gpu:8"),
        ("--time=soon", "time = soon is not what --time of sbatch takes"),
        ("--reservation=mine", "no reservation 'mine'"),
        ("--nosuch=1", "nosuch = 1 is not what --nosuch of sbatch takes"),
        ("--dependency=sometime:1", "job that it is to follow"),
    ],
)
def test_a_refusal_is_one_line_that_names_the_value(slurm: Slurm, script: Callable[..., Path], option: str, words: str) -> None:
    path = script("true", option)
    with pytest.raises(SlurmError, match=words) as refused:
        slurm.submit(path)
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)


def test_a_missing_script_and_one_that_is_none_are_refused(slurm: Slurm, tmp_path: Path) -> None:
    with pytest.raises(SlurmError, match="shared file system"):
        slurm.submit(tmp_path / "gone.sh")
    (tmp_path / "text").write_text("hello\n")
    with pytest.raises(SlurmError, match="does not look like a batch script"):
        slurm.submit(tmp_path / "text")


def test_where_there_is_no_sbatch_one_line_says_so(cluster: Cluster, tmp_path: Path) -> None:
    nowhere = Slurm(LocalTransport({**cluster.environment, "PATH": str(tmp_path)}))
    for ask in (lambda: nowhere.submit("job.sh"), lambda: nowhere.jobs([1]), nowhere.ping):
        with pytest.raises(SlurmError, match=r"no (sbatch|squeue|scontrol) on the PATH of this machine"):
            ask()


def marked(transport: Watched) -> list[int]:
    """Unfinished jobs of the last sbatch's mark."""
    mark = [command for command in transport.commands if command[0] == "sbatch"][-1][-1]
    lines = LocalTransport.run(transport, ["squeue", "-h", "-O", "JobID:20,Command:500"]).stdout.splitlines()
    return [int(line.split()[0]) for line in lines if line.rstrip().endswith(mark)]


def test_a_job_whose_reply_was_lost_is_found_and_not_submitted_again(slurm: Slurm, transport: Watched, script: Callable[..., Path]) -> None:
    def lose_reply(command: Sequence[str], run: Run) -> Completed:
        done = run(command)
        if command[0] == "sbatch":
            raise TimeoutError("sbatch gave no answer")
        return done

    transport.between = lose_reply
    job = slurm.submit(script("exec sleep 60"))
    assert transport.count("sbatch") == 1
    assert marked(transport) == [job]
    slurm.cancel([job])


def test_a_request_that_was_lost_is_made_again(slurm: Slurm, transport: Watched, script: Callable[..., Path]) -> None:
    def lose_first(command: Sequence[str], run: Run) -> Completed:
        if command[0] == "sbatch" and transport.count("sbatch") == 1:
            return Completed(1, "", "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n")
        return run(command)

    transport.between = lose_first
    job = slurm.submit(script("true"))
    assert transport.count("sbatch") == 2
    assert wait(slurm, [job], finished)[job].state.ok, "not held for ever"


def test_a_request_that_arrives_late_does_not_become_a_second_job(slurm: Slurm, transport: Watched, script: Callable[..., Path]) -> None:
    def delay_first(command: Sequence[str], run: Run) -> Completed:
        if command[0] != "sbatch":
            return run(command)
        if transport.count("sbatch") == 1:
            raise TimeoutError("sbatch gave no answer")
        run([part for part in command if part != "--hold"])  # the first request, after it was looked for
        return run(command)

    transport.between = delay_first
    job = slurm.submit(script("exec sleep 60"))
    assert marked(transport) == [job]
    assert slurm.jobs([job])[job].reason != "JobHeldUser"
    slurm.cancel([job])


def test_the_same_works_on_a_login_node_over_ssh(
    cluster: Cluster, script: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("sshd")
    with running_sshd(folder) as server, SSHTransport(server.login, server.options(), cluster.environment) as transport:
        slurm = Slurm(transport)
        job = slurm.submit(script("exit 4", "--comment='over ssh; $HOME'"))
        found = wait(slurm, [job], finished)[job]
        assert (found.state, found.exit_code, found.comment) == (JobState.FAILED, 4, "over ssh; $HOME")
        with pytest.raises(SlurmError, match="time = soon"):
            slurm.submit(script("true", "--time=soon"))  # sbatch ends with 255 here, as ssh does when it fails
        assert [node.name for node in slurm.nodes()] == ["n1", "n2"]


def test_the_cluster_is_described(slurm: Slurm) -> None:
    batch, urgent = slurm.partitions()
    assert (batch.name, batch.default, batch.up, batch.nodes, batch.cpus, batch.max_time_s) == ("batch", True, True, 2, 8, None)
    assert not urgent.default
    nodes = slurm.nodes()
    assert [(node.name, node.cpus, node.memory_bytes) for node in nodes] == [("n1", 4, 2**30), ("n2", 4, 2**30)]
    assert all(set(node.partitions) == {"batch", "urgent"} for node in nodes)
    assert all(node.responding for node in nodes)
    assert slurm.accounts() is None, "no accounting here"
    assert slurm.ping()


def test_jobs_that_the_controller_forgot_come_from_jobcomp(
    cluster: Cluster, slurm: Slurm, transport: Watched, script: Callable[..., Path]
) -> None:
    fails = slurm.submit(script("sleep 1; exit 3", "--job-name=forgotten"))
    told = wait(slurm, [fails], finished)[fails]
    cluster.stop_controller()
    for state in (cluster.folder / "state").glob("job_state*"):
        state.unlink()
    cluster.start_controller()
    assert slurm.jobs([fails])[fails].started == told.started
    transport.commands.clear()
    jobs = slurm.jobs([fails, 4_000_000])
    found = jobs[fails]
    assert (found.state, found.exit_code, found.name, found.node_list) == (JobState.FAILED, 3, "forgotten", told.node_list)
    assert (found.started, found.ended, found.elapsed_s) == (told.started, told.ended, told.elapsed_s)
    assert jobs[4_000_000].state is JobState.UNKNOWN
    asked = [command[:2] for command in transport.commands]
    assert transport.count("sacct") == 1, f"not asked again for accounting that is not kept: {asked}"
    assert slurm.accounting([fails]) == {}


def test_a_cluster_that_is_down_is_told_within_the_patience_and_one_that_comes_back_is_waited_for(
    cluster: Cluster, transport: Watched, script: Callable[..., Path]
) -> None:
    path = script("true")
    cluster.stop_controller()
    try:
        hasty = Slurm(transport, patience_s=1, answer_s=0.7)
        assert not hasty.ping()
        for ask in (lambda: hasty.jobs([1]), lambda: hasty.submit(path), lambda: hasty.cancel([1])):
            begin = time.monotonic()
            with pytest.raises(SlurmError, match=r"cluster does not answer .* wait until `scontrol ping` says UP") as down:
                ask()
            assert time.monotonic() - begin < 3
            assert "\n" not in str(down.value)
        back = threading.Timer(0.5, cluster.start_controller)
        back.start()
        slurm = Slurm(transport, patience_s=30, answer_s=1)
        job = slurm.submit(path)
        back.join()
        assert wait(slurm, [job], finished)[job].state.ok
        assert marked(transport) == []
    finally:
        if not Slurm(transport).ping():
            cluster.start_controller()


def test_waits_grow_are_jittered_and_bounded_in_total() -> None:
    now, sleeps = [0.0], list[float]()

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        now[0] += seconds

    slurm = Slurm(LocalTransport(), patience_s=60, clock=Clock(now=lambda: now[0], sleep=sleep, random=iter([0.0, 0.5] * 50).__next__))
    tries = list(slurm.tries())
    assert sleeps[:4] == [0.25, 1.0, 1.0, 4.0]
    assert max(sleeps) <= 15
    assert sum(sleeps) < 60
    assert len(tries) == len(sleeps) + 1
    assert len(list(Slurm(LocalTransport(), attempts=2, clock=Clock(sleep=lambda seconds: None)).tries())) == 2


def test_nothing_of_this_process_is_left_to_slurm(transport: Watched) -> None:
    assert transport.run(["sh", "-c", "echo $SLURM_TIME_FORMAT"]).stdout == "%s\n"
    assert os.environ.get("SLURM_TIME_FORMAT") != "%s"
