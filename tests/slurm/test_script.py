"""The batch script is a pure function of what a job asks for, and no value in it becomes a line, an option or a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest
from zenml.config import ResourceSettings

from hls_foundry.errors import ConfigError
from stacks.slurm.rehearsal import Cluster
from stacks.slurm.run_directory import RunDirectory
from stacks.slurm.script import JobScript, Resources, render_environment, render_job_script, warning_ahead
from stacks.slurm.settings import SlurmOrchestratorConfig, SlurmSettings, resources_of

GOLDEN = Path(__file__).parent / "golden"
RUN = RunDirectory(PurePosixPath("/shared/runs/0b54c1"))
SUPERVISED = ("/shared/env/bin/python", "-m", "stacks.slurm.supervisor", "/shared/runs/0b54c1")


def job(name: str = "validate", run: RunDirectory = RUN, **settings: object) -> JobScript:
    step = run.step(name)
    return JobScript(
        name=f"train.{name}",
        settings=SlurmSettings(**settings),
        resources=Resources(),
        step=step,
        code=run.code,
        environment_files=(run.environment, step.environment),
        command=(*SUPERVISED, name),
        comment="zenml run 5e0f",
    )


def minimal_cpu_step() -> JobScript:
    return job()


def full_gpu_step() -> JobScript:
    settings = SlurmSettings(
        partition="dc-gpu", account="training2401", qos="normal", reservation="course", constraint="a100&largedata",
        time="12:00:00", nodes=4,
        tasks_per_node=1, memory="0", gpus_per_node=4, gres="nvme:1", exclusive=True, hint="nomultithread", mail_user="me@example.org",
        mail_type="END,FAIL", flags=["--licenses=a:1", "--contiguous"], modules=["Stages/2025", "CUDA/12"],
        setup=["source /shared/env/activate.sh", "ulimit -n 65536"],
        environment={"NCCL_SOCKET_IFNAME": "ib0", "NOTE": "it's $5; `really`"}, warning_s=300,
    )  # fmt: skip
    resources = resources_of(ResourceSettings(cpu_count=47.5, gpu_count=2, memory="100GB"))
    return replace(job("fine tune"), settings=settings, resources=resources)


def closing_job() -> JobScript:
    config = SlurmOrchestratorConfig(
        folder="/shared/runs", partition="dc-gpu", account="training2401", gres="gpu:4", nodes=4, closing_partition="dc-cpu"
    )
    command = ("/shared/env/bin/python", "-m", "stacks.slurm.closing", "/shared/runs/0b54c1")
    return JobScript(
        name="train.closing",
        settings=config.closing_settings(),
        resources=Resources(cpus=1, memory_mib=1024),
        step=RUN.closing,
        code=RUN.code,
        environment_files=(RUN.environment, RUN.closing.environment),
        command=command,
        comment="zenml run 5e0f",
        signal=False,
    )


@pytest.mark.parametrize("made", [minimal_cpu_step, full_gpu_step, closing_job])
def test_scripts_are_as_on_file(made: type[JobScript]) -> None:
    assert render_job_script(made()) == (GOLDEN / f"{made.__name__}.sh").read_text(encoding="utf-8")


def test_the_same_job_has_the_same_script() -> None:
    assert render_job_script(full_gpu_step()) == render_job_script(full_gpu_step())


def options(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]


@pytest.mark.parametrize(
    ("settings", "resources", "expected", "absent"),
    [
        ({}, Resources(cpus=0.5), ["--cpus-per-task=1"], "--mem"),
        ({"tasks_per_node": 4}, Resources(cpus=10), ["--ntasks-per-node=4", "--cpus-per-task=3"], "--gpus"),
        ({"cpus_per_task": 2}, Resources(cpus=10), ["--cpus-per-task=2"], "--mem"),
        ({"memory": "1GiB"}, Resources(memory_mib=5), ["--mem=1024M"], "--gpus"),
        ({}, Resources(memory_mib=5), ["--mem=5M"], "--gpus"),
        ({"memory": "0"}, Resources(memory_mib=5), ["--mem=0"], "--gpus"),
        ({}, Resources(gpus=0), [], "--gpus"),
        ({"gpus_per_node": 0}, Resources(gpus=2), [], "--gpus"),
        ({"gres": "gpu:a100:4"}, Resources(gpus=2), ["--gres=gpu:a100:4"], "--gpus"),
        ({"gres": "gpumem:4"}, Resources(gpus=2), ["--gres=gpumem:4", "--gpus-per-node=2"], "--mem"),
    ],
)
def test_settings_win_over_resources(settings: Mapping[str, object], resources: Resources, expected: list[str], absent: str) -> None:
    found = options(render_job_script(replace(job(**settings), resources=resources)))
    assert set(expected) <= set(found)
    assert not any(option.startswith(absent) for option in found)


@pytest.mark.parametrize(("time", "ahead"), [(None, 120), ("60", 120), ("4", 120), ("3", 90), ("1", 30), ("0:10", 30), ("2:01", 90)])
def test_the_warning_comes_within_the_time_limit(time: str | None, ahead: int) -> None:
    settings = SlurmSettings(time=time)
    assert warning_ahead(settings) == ahead
    assert f"--signal=B:USR1@{ahead}" in options(render_job_script(job(time=time)))


def test_requeue_and_warning_are_the_jobs_choice() -> None:
    found = options(render_job_script(replace(job(), requeue=False, signal=False)))
    assert "--no-requeue" in found
    assert not any(option.startswith(("--signal", "--requeue")) for option in found)


@pytest.mark.parametrize("root", ["/a\nb", "/a\\b", "/a\tb", "relative", "/a\x1b[0m"])
def test_a_run_folder_that_sbatch_cannot_be_told_is_refused_in_one_line(root: str) -> None:
    with pytest.raises(ConfigError, match="run folder: ") as refused:
        render_job_script(job(run=RunDirectory(PurePosixPath(root))))
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("command", [(), ("python", "a\0b")])
def test_a_command_that_no_process_can_have_is_refused(command: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="command"):
        render_job_script(replace(job(), command=command))


def test_an_environment_file_holds_any_text_and_refuses_what_is_none() -> None:
    for wrong in ({"a b": "1"}, {"A": "1\0"}, {"A=1;id": ""}, {"EUID": "0"}):
        with pytest.raises(ConfigError, match="environment of the job"):
            render_environment(wrong)
    assert render_environment({"A": "1", "B": "it's"}) == "export A=1\nexport B='it'\"'\"'s'\n"
    assert render_environment({}) == ""


# --- under a real bash -------------------------------------------------------------------------------------------------------

PROBE = "import json, os, sys; print(json.dumps({'argv': sys.argv[1:], 'env': dict(os.environ), 'cwd': os.getcwd(), 'umask': os.umask(0)}))"
HARM = "touch CANARY"
NASTY = [f"; {HARM}", f"$({HARM})", f"`{HARM}`", f"'; {HARM}; '", f'"; {HARM}; "', f"\n{HARM}\n", f"\\\n{HARM}", f"& {HARM} &", f"| {HARM}",
         f"\n#SBATCH --wrap={HARM}\n", f"EOF\n{HARM}", f"}}; {HARM}; {{", f"a #\n{HARM}", "é 日本 $HOME ~ * ?", "", " ", "-rf", "!!",
         "%j", "\\", "'", '"', f"\r\n{HARM}", "\x01\x7f"]  # fmt: skip


class Place:
    """A run folder on disk whose script bash runs as slurmd would, in a folder where harm would leave a CANARY."""

    def __init__(self, root: Path) -> None:
        self.run = RunDirectory(PurePosixPath(root))
        Path(self.run.code).mkdir(parents=True)

    def job(self, arguments: tuple[str, ...] = (), **settings: object) -> JobScript:
        step = self.run.step("s")
        Path(step.root).mkdir(parents=True, exist_ok=True)
        for file in (self.run.environment, step.environment):
            if not Path(file).exists():
                Path(file).write_text("")
        return replace(job("s", self.run, **settings), command=(sys.executable, "-c", PROBE, *arguments))

    def bash(self, made: JobScript, **environment: str) -> subprocess.CompletedProcess[str]:
        script = Path(made.step.script)
        script.write_text(render_job_script(made), encoding="utf-8", newline="")
        subprocess.run(["bash", "-n", str(script)], check=True, timeout=20)
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", **environment}
        done = subprocess.run(
            ["bash", str(script)], cwd=Path(self.run.root), env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert not list(Path(self.run.root).rglob("CANARY"))
        return done

    def probe(self, made: JobScript, **environment: str) -> dict[str, object]:
        done = self.bash(made, **environment)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / 'it\'s 100% #1 "run" $HOME; touch CANARY')


def test_no_value_becomes_a_command(place: Place) -> None:
    one_line = {f"V{number}": text for number, text in enumerate(NASTY) if not set(text) & {"\n", "\r"}}
    whole = {f"W{number}": text for number, text in enumerate(NASTY)}
    made = place.job(tuple(NASTY), environment=one_line)
    Path(place.run.environment).write_text(render_environment(whole), encoding="utf-8", newline="")
    probe = place.probe(made)
    assert probe["argv"] == NASTY
    assert probe["env"].items() >= (one_line | whole).items()  # type: ignore[attr-defined]
    assert probe["cwd"] == str(place.run.code)


@pytest.mark.parametrize("text", NASTY)
def test_names_and_comments_stay_one_directive(place: Place, text: str) -> None:
    plain, made = place.job(), replace(place.job(), name=f"a{text}b", comment=f"c{text}d")
    expected, found = render_job_script(plain).splitlines(), render_job_script(made).splitlines()
    changed = [after for before, after in zip(expected, found, strict=True) if before != after]
    assert len(changed) == 2
    assert changed[0].startswith("#SBATCH --job-name=")
    assert changed[1].startswith("#SBATCH --comment=")
    place.probe(made)


def test_setup_lines_run_in_the_jobs_shell_and_see_its_environment(place: Place) -> None:
    made = place.job(setup=['export GREETING="$WHO $UNSET_BY_ANYONE!"', "umask 022"], environment={"LATER": "1"})
    Path(made.step.environment).write_text(render_environment({"WHO": "hello\nyou"}))
    probe = place.probe(made)
    assert probe["env"].items() >= {"GREETING": "hello\nyou !", "LATER": "1"}.items()  # type: ignore[attr-defined]
    assert probe["umask"] == 0o022


@pytest.mark.parametrize(
    "line", ["echo 'open", 'echo "open', "cat <<END", "if true; then", "echo $(", "{", "false", "no-such-program-here", "true | false"]
)
def test_a_setup_line_that_fails_or_is_left_open_ends_the_job_there(place: Place, line: str) -> None:
    done = place.bash(place.job(setup=[line, "true"]))
    if line == "cat <<END":  # bash takes the end of the text as the end of the here-document
        assert done.returncode == 0
        return
    assert done.returncode != 0
    assert "argv" not in done.stdout
    assert done.stderr.strip()


def test_a_failing_setup_line_is_told_with_its_line_number(place: Place) -> None:
    made = place.job(setup=["true", "false"])
    number = render_job_script(made).splitlines().index("eval false") + 1
    assert f"line {number} failed with exit code 1" in place.bash(made).stderr


def test_the_process_gets_an_environment_that_is_the_runs_own(place: Place) -> None:
    environment = place.probe(place.job(), SLURM_EXPORT_ENV="NONE", SLURM_CPUS_PER_TASK="3", PYTHONPATH="/of/a/module")["env"]
    assert isinstance(environment, dict)
    assert "SLURM_EXPORT_ENV" not in environment
    expected = {"PYTHONPATH": str(place.run.code), "PYTHONNOUSERSITE": "1", "PYTHONUNBUFFERED": "1", "SRUN_CPUS_PER_TASK": "3"}
    assert environment.items() >= expected.items()
    assert "SRUN_CPUS_PER_TASK" not in place.probe(place.job())["env"]  # type: ignore[operator]


def test_what_the_job_writes_is_the_users_alone(place: Place) -> None:
    assert place.probe(place.job())["umask"] == 0o077


def test_a_folder_that_the_node_does_not_see_is_told_in_one_line(place: Place) -> None:
    made = place.job()
    Path(place.run.environment).unlink()
    done = place.bash(made)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert f"{place.run.environment} is not there: is the run's folder on a file system that this node sees?" in done.stderr


def test_modules_without_a_module_command_are_told_in_one_line(place: Place) -> None:
    if Path("/etc/profile.d/modules.sh").exists() or Path("/etc/profile.d/lmod.sh").exists():
        pytest.skip("this machine has a module command")
    done = place.bash(place.job(modules=["GCC"]))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "no 'module'" in done.stderr


def test_modules_are_loaded_in_order_by_a_command_that_is_careless_of_unset_variables(place: Place, tmp_path: Path) -> None:
    init = tmp_path / "lmod" / "init" / "bash"
    init.parent.mkdir(parents=True)
    init.write_text('module() { false; echo "$NEVER_SET" > /dev/null; [ "$2" != Broken ] && LOADED="${LOADED:-}$2 " && export LOADED; }\n')
    made = place.job(modules=["GCC/13", "CUDA/12"])
    environment = place.probe(made, LMOD_PKG=str(tmp_path / "lmod"))["env"]
    assert environment["LOADED"] == "GCC/13 CUDA/12 "  # type: ignore[index]
    done = place.bash(place.job(modules=["Broken"]), LMOD_PKG=str(tmp_path / "lmod"))
    assert (done.returncode, "cannot load the module Broken" in done.stderr) == (1, True)


# --- on a real cluster -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(slurm_cluster: Cluster) -> Mapping[str, str]:
    """The environment of Slurm's commands."""
    return {**os.environ, **slurm_cluster.environment}


def slurm(cluster: Mapping[str, str], *command: str) -> str:
    return subprocess.run(command, env=dict(cluster), capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def finished(cluster: Mapping[str, str], job_id: str) -> str:
    """What scontrol says of the job once it has ended."""
    for _ in range(300):
        said = slurm(cluster, "scontrol", "-o", "show", "job", job_id)
        if not any(f"JobState={state}" in said for state in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")):
            return said
        time.sleep(0.1)
    pytest.fail(f"did not end: {said}")


def test_slurm_reads_every_directive_as_it_was_meant(cluster: Mapping[str, str], tmp_path: Path) -> None:
    place = Place(tmp_path / 'it\'s 100%j #1 "run", $HOME; é')
    asked = place.job(time="5", nodes=2, memory="100MiB", tasks_per_node=2, exclusive=True, mail_type="NONE", flags=["--nice=7"])
    program = 'srun --ntasks=2 bash -c \'printf "%q in %s\\n" "$MARK" "$PWD"\'; echo cpus $SRUN_CPUS_PER_TASK'
    made = replace(
        asked, name='a "b" \\ c #d é', comment="zenml 'run' \"x\" \\ #1", resources=Resources(cpus=2), command=("bash", "-c", program)
    )
    Path(place.run.environment).write_text(render_environment({"MARK": "two\nlines"}))
    Path(made.step.log).write_text("earlier\n")
    Path(made.step.script).write_text(render_job_script(made))
    job_id = slurm(cluster, "sbatch", "--parsable", str(made.step.script))
    said = finished(cluster, job_id)
    log = Path(made.step.log).read_text()
    assert "JobState=COMPLETED" in said, log
    expected = [
        'JobName=a "b" \\ c #d é ', "Comment=zenml 'run' \"x\" \\ #1 ", f"WorkDir={place.run.code} ", "TimeLimit=00:05:00",
        "NumNodes=2 ", "Requeue=1", "Nice=7", "MinMemoryNode=100M", "CPUs/Task=1", "OverSubscribe=NO", "NtasksPerN:B:S:C=2:0:*:*",
    ]  # fmt: skip
    assert [part for part in expected if part not in said] == []
    assert log.startswith("earlier\n")
    assert log.count("$'two\\nlines' in " + str(place.run.code)) == 2
    assert log.endswith("cpus 1\n")


def test_slurm_refuses_what_the_cluster_lacks_for_that_reason_alone(cluster: Mapping[str, str], tmp_path: Path) -> None:
    """So the directive was read as it was meant."""
    place = Place(tmp_path / "run")
    for settings, reason in (
        ({"constraint": "[rack1*1&rack2*1]"}, "Invalid feature specification"),
        ({"gpus_per_node": 1}, "Requested node configuration is not available"),
        ({"gres": "gpu:a100:1"}, "Requested node configuration is not available"),
        ({"partition": "elsewhere"}, "invalid partition"),
        ({"reservation": "course"}, "Requested reservation is invalid"),
        ({"hint": "nomultithread"}, ""),
        ({"qos": "q", "account": "a", "mail_user": "me@example.org", "mail_type": "END"}, ""),
    ):
        made = place.job(**settings)
        Path(made.step.script).write_text(render_job_script(made))
        done = subprocess.run(
            ["sbatch", "--test-only", str(made.step.script)], env=dict(cluster), capture_output=True, text=True, check=False, timeout=60
        )
        assert reason in done.stderr
        assert (done.returncode == 0) == (reason == ""), done.stderr


def test_the_warning_reaches_the_command_itself(cluster: Mapping[str, str], tmp_path: Path) -> None:
    """The command has replaced the shell, so that a signal to the batch step is one to it."""
    place = Place(tmp_path / "run")
    program = "import signal, sys, time\nsignal.signal(signal.SIGUSR1, lambda *_: sys.exit(3))\nprint('ready', flush=True)\ntime.sleep(60)"
    made = replace(place.job(time="5"), command=(sys.executable, "-c", program))
    Path(made.step.script).write_text(render_job_script(made))
    job_id = slurm(cluster, "sbatch", "--parsable", str(made.step.script))
    for _ in range(300):
        if Path(made.step.log).exists() and "ready" in Path(made.step.log).read_text():
            break
        time.sleep(0.1)
    slurm(cluster, "scancel", "--batch", "--signal=USR1", job_id)
    assert "ExitCode=3:0" in finished(cluster, job_id)
