"""`accelerate launch` without its stack traces: what went wrong is in the workers' own reports, which the launcher reads."""

from __future__ import annotations

import logging
import sys

from accelerate.commands.launch import main as accelerate_launch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main() -> int:
    """Run Accelerate's command line on `sys.argv`; 0 where all workers ended well."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        accelerate_launch()
    except (ChildFailedError, SignalException):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
