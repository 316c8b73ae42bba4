"""Small pipelines that the orchestrator's tests run on a real cluster."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Annotated

from zenml import pipeline, step
from zenml.config.retry_config import StepRetryConfig
from zenml.enums import StepRuntime

from tests.slurm.edited import VERSION


@step(enable_cache=False)
def one() -> Annotated[int, "number"]:
    return 1


@step
def cached() -> Annotated[int, "cached_number"]:
    return 1


@step(enable_cache=False)
def add(a: int, b: int) -> Annotated[int, "total"]:
    return a + b


@step(enable_cache=False)
def wait(number: int, seconds: float) -> Annotated[int, "number"]:
    print(f"waiting {seconds} s", flush=True)
    time.sleep(seconds)
    return number


@step(enable_cache=False)
def fail(number: int) -> Annotated[int, "number"]:
    raise ValueError("this step fails")


@step(enable_cache=False)
def wait_beside(number: int, note: str, seconds: float) -> Annotated[int, "number"]:
    """Says that it runs, to `fail_beside`."""
    Path(note).touch()
    time.sleep(seconds)
    return number


@step(enable_cache=False)
def fail_beside(number: int, note: str) -> Annotated[int, "number"]:
    """Fails while `wait_beside` runs."""
    while not Path(note).exists():
        time.sleep(0.1)
    raise ValueError("this step fails")


@step(enable_cache=False)
def fail_at_first(note: str) -> Annotated[int, "number"]:
    path = Path(note)
    tried = len(path.read_text()) if path.exists() else 0
    path.write_text("x" * (tried + 1))
    if tried == 0:
        raise ValueError("the first attempt fails")
    return tried


@step(enable_cache=False)
def die() -> Annotated[int, "number"]:
    os.kill(os.getpid(), signal.SIGKILL)
    return 1


@step(enable_cache=False)
def take_memory(gigabytes: float) -> Annotated[int, "number"]:
    held = bytearray(int(gigabytes * 2**30))
    held[::4096] = b"x" * len(held[::4096])
    time.sleep(60)
    return len(held)


@step(enable_cache=False)
def hang_at_first(note: str) -> Annotated[str, "restart"]:
    """Hangs until Slurm starts it again."""
    restart = os.environ.get("SLURM_RESTART_COUNT", "0")
    with Path(note).open("a") as file:
        file.write(f"{restart}\n")
    if restart == "0":
        time.sleep(300)
    return restart


@step(enable_cache=False)
def die_then_hang(note: str) -> Annotated[str, "calls"]:
    """Is killed at its first call, hangs at its second until Slurm starts the job again, and returns from its third."""
    with Path(note).open("a") as file:
        file.write(f"{os.environ['HLS_STEP_ATTEMPT']}/{os.environ.get('SLURM_RESTART_COUNT', '0')}\n")
    calls = Path(note).read_text()
    if calls.count("\n") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if calls.count("\n") == 2:
        time.sleep(300)
    return calls


@step(enable_cache=False)
def ignore_signals() -> Annotated[int, "number"]:
    """Runs on whatever it is told."""
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(600)
    return 1


@step(enable_cache=False)
def version_of_code() -> Annotated[str, "version"]:
    return VERSION


@pipeline
def diamond() -> None:
    add(wait(one(), 0.1, id="left"), wait(one(id="two"), 0.1, id="right"))


@pipeline
def branches(note: str, seconds: float) -> None:
    """`fail` fails while `wait` runs; `later` comes after `wait`; `add` needs both branches."""
    later = wait(wait_beside(one(id="two"), note, seconds, id="wait"), 0.1, id="later")
    add(fail_beside(one(), note, id="fail"), later)


@pipeline
def waiting(seconds: float) -> None:
    add(wait(one(), seconds), 1)


@pipeline
def retried(note: str) -> None:
    fail_at_first.with_options(retry=StepRetryConfig(max_retries=2, delay=0))(note)


@pipeline
def killed() -> None:
    add(die(), 1)


@pipeline
def too_large() -> None:
    add(take_memory.with_options(retry=StepRetryConfig(max_retries=1, delay=0))(1.5), 1)


@pipeline
def restarted(note: str) -> None:
    hang_at_first(note)


@pipeline
def killed_and_restarted(note: str) -> None:
    die_then_hang.with_options(retry=StepRetryConfig(max_retries=1, delay=0))(note)


@pipeline
def deaf() -> None:
    add(ignore_signals(), 1)


@pipeline
def with_cached_step() -> None:
    add(cached(), 1)


@pipeline
def says_its_version() -> None:
    version_of_code()


@pipeline
def many(count: int) -> None:
    for number in range(count):
        one(id=f"step_{number:02d}")


@pipeline(dynamic=True)
def grows() -> None:
    first = one.with_options(runtime=StepRuntime.INLINE)()
    wait.with_options(runtime=StepRuntime.ISOLATED)(first, 0.1)


@pipeline(dynamic=True)
def grows_and_fails() -> None:
    fail.with_options(runtime=StepRuntime.ISOLATED)(1)


@pipeline(dynamic=True)
def grows_and_waits(seconds: float) -> None:
    wait.with_options(runtime=StepRuntime.ISOLATED)(1, seconds)
