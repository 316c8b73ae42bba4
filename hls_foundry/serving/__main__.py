"""`python -m hls_foundry.serving serve`: the serving container's command, and the local endpoint's."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
from pathlib import Path

STOPPED_EARLY = 128 + signal.SIGTERM  # as a shell has it


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and serve; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m hls_foundry.serving", description="Answer scenes over HTTP, as SageMaker asks.")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="serve the model in SM_MODEL_DIR on SAGEMAKER_BIND_TO_PORT")
    serve.add_argument("--public-fd", type=int, help=argparse.SUPPRESS)  # these three: given by hls_foundry.endpoints
    serve.add_argument("--check-fd", type=int, help=argparse.SUPPRESS)
    serve.add_argument("--control", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if os.getpid() == 1:  # of a container: the kernel drops signals that have no handler, and imports take their time
        signal.signal(signal.SIGTERM, lambda *_: os._exit(STOPPED_EARLY))
    # Imports make a million objects that stay: looking through them for garbage again and again costs a cold start half a second.
    # The application turns collection on when its model is loaded.
    gc.disable()
    # A request's image is opened by GDAL: whatever it says, nothing is to be fetched from the network on its behalf.
    os.environ.setdefault("CPL_VSIL_CURL_ALLOWED_EXTENSIONS", "none")
    # GDAL would keep unpacked blocks up to 5 % of the machine's memory, which is not the container's.
    os.environ.setdefault("GDAL_CACHEMAX", "96")

    from hls_foundry.serving.server import Handover, run

    handover = None
    if options.control is not None:
        handover = Handover(options.control, options.public_fd, options.check_fd)
    return run(handover)


if __name__ == "__main__":
    sys.exit(main())
