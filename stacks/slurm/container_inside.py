"""The first thing that runs in a step's container: `python -m stacks.slurm.container_inside PYTHON -m MODULE …`.

It tells the host's side who is there, looks whether the image can run this code at all, and goes on as MODULE in the same process.
Standard library only, since the image may lack the rest.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from stacks.slurm.container_client import connect, send
from stacks.slurm.container_host import STOP

ZENML = "HLS_INSIDE_ZENML"
"""Environment variable with the version of ZenML that submitted the run."""
REFUSED = 2


def main(command: list[str]) -> int:
    """Become `command`; returns only where the image is refused."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)
    _settle(Path(os.environ["HLS_INSIDE_HOME"]), os.environ["HLS_INSIDE_COMMANDS"])
    with suppress(OSError), connect() as connection:  # pyxis's ranks have no host's side: srun's signals reach them
        send(connection, {"here": True}, [])
    if problem := refusal(os.environ.get(ZENML, "")):
        print(f"the image {os.environ.get('HLS_IMAGE', '')} {problem}", file=sys.stderr)
        return REFUSED
    if warning := difference(Path("requirements.lock")):
        print(f"warning: the image {warning}", file=sys.stderr)
    sys.argv = [command[2], *command[3:]]
    runpy.run_module(command[2], run_name="__main__", alter_sys=True)
    return 0


def _settle(home: Path, commands: str) -> None:
    """A home of the step's own, and Slurm's commands on the PATH."""
    with suppress(OSError):
        home.mkdir(parents=True, exist_ok=True)
    for name in [name for name in os.environ if name.startswith("XDG_")]:
        del os.environ[name]
    os.environ |= {"HOME": str(home), "PATH": f"{commands}:{os.environ.get('PATH', os.defpath)}"}


def refusal(zenml: str) -> str:
    """Why this image cannot run a step; empty where it can. Another ZenML would change the run's store, or not understand it."""
    remedy = "make images builds one that does"
    try:
        found = metadata.version("zenml")
    except metadata.PackageNotFoundError:
        return f"has no ZenML for its {sys.executable}, and so not this project's environment: {remedy}"
    if zenml and found != zenml:
        return f"has ZenML {found}, and the run was submitted by {zenml}: {remedy}, from the same requirements.lock"
    return ""


def difference(lock: Path) -> str:
    """How the installed packages differ from those that `lock` pins, in a line; empty where they do not, or where there is no lock."""
    try:
        lines = lock.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    wrong = []
    for line in lines:
        name, pinned, rest = line.partition("==")
        if not pinned or line.startswith(("#", " ")):
            continue
        with suppress(metadata.PackageNotFoundError):  # an image need not have what development takes
            found, wanted = metadata.version(name), rest.split()[0]
            if found.split("+")[0] != wanted:
                wrong.append(f"{name} {found} for {wanted}")
    if not wrong:
        return ""
    return f"has other packages than requirements.lock of the code: {', '.join(wrong[:3])}" + (", …" if len(wrong) > 3 else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
