"""The host's side of a container and the process inside: exit codes, signals, and Slurm's commands given inside and run outside.

The script in the container's place starts the command as it is: what runtimes make of it is tests/e2e/test_hpc_containers.py's matter.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stacks.slurm.container import host_command_script
from stacks.slurm.container_host import COMMANDS, merged

ROOT = Path(__file__).resolve().parents[2]
START = '#!/bin/bash\nexec {before} {python} "${{@:2}}"\n'
SRUN = """#!/usr/bin/python3
import os, signal, sys, time
def told(number, frame):
    print("srun got", number, flush=True); sys.exit(number)
for number in (signal.SIGTERM, signal.SIGUSR1): signal.signal(number, told)
if sys.argv[1] == "wait":
    print("waiting", flush=True)
    for _ in range(600): time.sleep(0.1)  # a signal just before one long sleep would be heeded after it
print(sys.argv[1:], os.getcwd(), sys.stdin.read(), os.environ.get("HLS_X"), os.environ.get("SLURM_NTASKS"), os.environ["OUTSIDE"])
sys.exit(7)
"""


@pytest.fixture
def step(tmp_path: Path) -> Path:
    """A step's folder with a script that starts its command, modules for it, and Slurm's srun as the host has it."""
    for name, text in {
        "container.sh": START.format(before="", python=sys.executable),
        "host/srun": SRUN,
        **{f"commands/{name}": host_command_script() for name in COMMANDS},
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def begin(step: Path, program: str) -> subprocess.Popen[str]:
    (step / "program.py").write_text(program)
    own = {
        "PATH": f"{step / 'host'}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{step}",
        "HLS_INSIDE_HOME": str(step / "home"),
        "HLS_INSIDE_COMMANDS": str(step / "commands"),
        "HLS_INSIDE_PYTHON": sys.executable,
        "OUTSIDE": "yes",
        "SLURM_NTASKS": "9",
    }
    command = [sys.executable, "-m", "stacks.slurm.container_host", str(step), "--", "python", "-m", "program"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env={**os.environ, **own}, cwd=step, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, out, err


HANDLER = """
import os, signal, sys, time
def told(number, frame):
    os.write(1, f"got {number}\\n".encode()); os._exit(85)  # at once, as a step does: a second signal may be on its way
for number in (signal.SIGTERM, signal.SIGUSR1): signal.signal(number, told)
print("ready", flush=True)
while True: time.sleep(0.05)
"""


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_signals_reach_the_process_inside_and_its_exit_code_comes_out(step: Path, number: signal.Signals) -> None:
    process = begin(step, HANDLER)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert ended(process)[:2] == (85, f"got {int(number)}\n")


def test_signals_reach_it_past_a_runtime_that_is_deaf_to_them(step: Path) -> None:
    """As a runtime that serves the image's files has to be: Slurm may signal every process of the job."""
    runtime = f"#!{sys.executable}\nimport subprocess, sys\nsys.exit(subprocess.call([sys.executable, *sys.argv[2:]]))\n"
    (step / "container.sh").write_text(runtime)
    process = begin(step, HANDLER)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGTERM)
    code, out, _ = ended(process)  # told by Slurm and by the host's side, it may say so twice
    assert (code, set(out.splitlines())) == (85, {f"got {int(signal.SIGTERM)}"})


def test_a_process_that_a_signal_ends_is_told_so(step: Path) -> None:
    assert ended(begin(step, "import os; os.kill(os.getpid(), 9)"))[0] == -signal.SIGKILL


def test_a_container_that_does_not_start_is_told_in_one_line(step: Path) -> None:
    (step / "container.sh").write_text("#!/bin/bash\nexit 255\n")
    code, _, err = ended(begin(step, ""))
    assert (code, err.count("\n")) == (255, 1)
    assert "did not start (exit code 255)" in err


def test_slurms_commands_are_run_outside_with_what_is_inside(step: Path) -> None:
    program = """
import os, subprocess, sys
os.environ["HLS_X"] = "inside"; os.environ["OUTSIDE"] = "no"; del os.environ["SLURM_NTASKS"]
done = subprocess.run(["srun", "a b", "-n2"], input="fed", capture_output=True, text=True, cwd="/tmp")
print(done.stdout, end=""); sys.exit(done.returncode)
"""
    code, out, err = ended(begin(step, program))
    assert (code, err) == (7, "")
    assert out == "['a b', '-n2'] /tmp fed inside None yes\n"


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_to_such_a_command_reaches_it_outside(step: Path, number: signal.Signals) -> None:
    program = f"""
import subprocess, sys
process = subprocess.Popen(["srun", "wait"], stdout=subprocess.PIPE, text=True)
assert process.stdout.readline() == "waiting\\n"
process.send_signal({int(number)})
print(process.communicate()[0], end=""); sys.exit(process.returncode)
"""
    assert ended(begin(step, program))[:2] == (number, f"srun got {int(number)}\n")


def test_a_command_ends_with_who_gave_it(step: Path) -> None:
    program = f"""
import subprocess
process = subprocess.Popen(["srun", "wait"], stdout=open({str(step / "said")!r}, "w"))
import time
while "waiting" not in open({str(step / "said")!r}).read(): time.sleep(0.05)
process.kill(); process.wait()
while "got" not in open({str(step / "said")!r}).read(): time.sleep(0.05)
"""
    assert ended(begin(step, program))[0] == 0
    assert (step / "said").read_text().endswith(f"srun got {int(signal.SIGTERM)}\n")


def test_other_programs_are_not_run_outside(step: Path) -> None:
    (step / "commands" / "id").write_text(host_command_script())
    (step / "commands" / "id").chmod(0o755)
    assert ended(begin(step, "import subprocess, sys; sys.exit(subprocess.run(['id']).returncode)"))[0] == 126


def test_nothing_stays_behind(step: Path) -> None:
    """The process inside ends, and what it started there goes on."""
    program = f"""
import subprocess, time
subprocess.Popen(["srun", "wait"], stdout=open({str(step / "said")!r}, "w"), start_new_session=True)
while "waiting" not in open({str(step / "said")!r}).read(): time.sleep(0.05)
"""
    assert ended(begin(step, program))[0] == 0
    until_told(step / "said", f"srun got {int(signal.SIGTERM)}")


def until_told(file: Path, text: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while text not in file.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_variables_of_containers_are_those_inside_and_all_others_the_hosts() -> None:
    host = {"PATH": "/host", "SLURM_CPUS_PER_TASK": "4", "SLURM_JOB_ID": "1", "PYTHONHOME": "/host", "LD_LIBRARY_PATH": "/host"}
    inside = {"PATH": "/image", "SLURM_JOB_ID": "1", "OMP_NUM_THREADS": "2", "HLS_INSIDE_SOCKET": "name"}
    kept = {"PATH": "/host", "PYTHONHOME": "/host", "LD_LIBRARY_PATH": "/host"}
    assert merged(host, inside) == {**kept, "SLURM_JOB_ID": "1", "OMP_NUM_THREADS": "2"}
    options = {"HLS_SRUN_OPTIONS": "--container-image=x"}
    assert merged(host, {**inside, **options}) == {"PATH": "/host", "SLURM_JOB_ID": "1", "OMP_NUM_THREADS": "2", **options}
