"""A training worker: `python -m hls_foundry.training REQUEST.json`, alone or one of several that `accelerate launch` or torchrun started.

Exit codes: 0 done, 2 for what the user can mend, 85 stopped by a signal with everything saved (start again to go on), 1 otherwise.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path

from hls_foundry.collection import collect_seldom
from hls_foundry.errors import FoundryError, Preempted
from hls_foundry.training.interruption import LAUNCHER_PID, PREEMPTED


def main(arguments: list[str]) -> int:
    """Run one worker of the training whose request file is named. Returns the exit code."""
    if len(arguments) != 1:
        print("usage: python -m hls_foundry.training REQUEST.json", file=sys.stderr)
        return 2
    rank = int(os.environ.get("RANK", "0"))
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.ERROR, format="%(message)s", stream=sys.stderr)
    # DDP says so of single rows such as the class token, whose stride means nothing.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    # Under our launcher, which reads the reports and says it once, a worker keeps its errors to itself.
    watched = LAUNCHER_PID in os.environ
    try:
        return _work(Path(arguments[0]), rank)
    except (FoundryError, Preempted) as error:
        if not watched:
            print(error, file=sys.stderr)
        return PREEMPTED if isinstance(error, Preempted) else 2
    except Exception:
        if not watched:
            raise
        return 1


def _work(path: Path, rank: int) -> int:
    collect_seldom()
    # Late: torch takes seconds to import, and a wrong command line should not.
    from hls_foundry.training.reports import WorkerReport
    from hls_foundry.training.request import TrainingRequest

    request = TrainingRequest.load(path)
    reports = request.folder / "workers"
    WorkerReport(rank, os.getpid()).save(reports)
    try:
        from hls_foundry.training.loop import train

        train(request)
    except BaseException as error:
        WorkerReport.of_error(rank, error).save(reports)
        raise
    finally:
        _leave_group()
    WorkerReport(rank, os.getpid(), "done").save(reports)
    return 0


def _leave_group() -> None:
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
