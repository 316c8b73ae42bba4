"""HLS chips in, tested endpoint out: the domain library. It knows nothing of ZenML."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("hls-foundry")
except PackageNotFoundError:  # run from a plain checkout
    __version__ = "0.0.0"
