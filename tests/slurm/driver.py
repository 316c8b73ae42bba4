"""A client in a process of its own: `python -m tests.slurm.driver PIPELINE RUN_NAME [DIE_AFTER]` submits from the working folder's tree.

It is killed (SIGKILL) right after the DIE_AFTERth sbatch, where that is given.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence

from cli.session import start_zenml
from stacks.slurm.transport import Completed, LocalTransport


class Deadly(LocalTransport):
    """Kills its own process after so many sbatch."""

    def __init__(self, environment: Mapping[str, str], left: int) -> None:
        super().__init__(environment)
        self.left = left

    def run(self, command: Sequence[str], *, input: bytes | None = None, timeout: float = 60) -> Completed:
        done = super().run(command, input=input, timeout=timeout)
        self.left -= command[0] == "sbatch"
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        return done


def main() -> None:
    """Submit one of the small pipelines to the stack that is active in the environment."""
    start_zenml()
    from stacks.slurm.orchestrator import SlurmOrchestrator
    from tests.slurm import pipelines

    if len(sys.argv) > 3:
        SlurmOrchestrator._transport = Deadly({"SLURM_CONF": os.environ["SLURM_CONF"]}, int(sys.argv[3]))
    slurm = {"time": "5", "environment": {"HLS_SUBMISSION_WAIT_S": "3"}}
    settings = {"orchestrator": slurm, "resources": {"cpu_count": 1, "memory": "700MB"}}
    getattr(pipelines, sys.argv[1]).with_options(settings=settings, run_name=sys.argv[2])()


if __name__ == "__main__":
    main()
