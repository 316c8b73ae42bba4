"""Start ZenML for this process: quiet, without analytics, with the repository as its source root."""

from __future__ import annotations

import fcntl
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cli.interrupts import deferred_signals
from hls_foundry.errors import ConfigError, FoundryError, Preempted
from hls_foundry.home import REPOSITORY
from stacks.aws.managed import quiet_sdk


def start_zenml() -> None:
    """Set ZenML's environment, source root and what it says at the terminal; what the user has set stays.

    Call before the first import of zenml: it reads these variables once.
    """
    os.environ.setdefault("ZENML_ANALYTICS_OPT_IN", "false")
    os.environ.setdefault("ZENML_LOGGING_VERBOSITY", "ERROR")
    os.environ.setdefault("ZENML_LOGGING_COLORS_DISABLED", "true")
    os.environ.setdefault("ZENML_AUTO_OPEN_DASHBOARD", "false")
    os.environ.setdefault("ZENML_ENABLE_RICH_TRACEBACK", "false")
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    quiet_sdk()
    from zenml.logger import ZenMLConsoleHandler  # importing it sets up the root logger
    from zenml.utils import source_utils

    from stacks.integrations import activate_on_demand

    source_utils.set_custom_source_root(str(REPOSITORY))
    for handler in logging.getLogger().handlers:
        if isinstance(handler, ZenMLConsoleHandler):
            handler.setStream(sys.stderr)  # standard output is for the summary
            handler.setFormatter(logging.Formatter("%(message)s"))
            handler.addFilter(_said_elsewhere)
    activate_on_demand()
    _open_store()
    logging.getLogger("hls_foundry").setLevel(logging.INFO)
    logging.getLogger("steps").setLevel(logging.INFO)


def _open_store() -> None:
    """Open ZenML's store, which creates it at first use. A signal in those seconds would leave a database that nothing can open."""
    from zenml.client import Client

    _check_server()
    try:
        with deferred_signals(), _one_at_a_time():
            _ = Client().zen_store
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"ZenML's store cannot be opened ({reason}): set ZENML_CONFIG_PATH to another folder, or mend it") from None


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Held while the store is opened: two first runs at once would both create it, and one find it half made."""
    from zenml.utils.io_utils import get_global_config_directory

    folder = Path(get_global_config_directory())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".opening").open("w")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written ({error.strerror}): set ZENML_CONFIG_PATH to a folder that can") from None
    with lock:
        with suppress(OSError):  # a file system without locks: as it would be without this
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check_server() -> None:
    """Of a store that is a server: one line at once about a wrong URL or key, on which ZenML's own client is silent for half a minute."""
    url, key = os.environ.get("ZENML_STORE_URL", ""), os.environ.get("ZENML_STORE_API_KEY", "")
    if not url or url.startswith(("sqlite:", "mysql:")):
        return
    from stacks.slurm.store import check_store

    for finding in check_store(url, Path(), key):
        if not finding.passed and (key or finding.name != "store key"):  # without a key, a login by hand may do
            raise ConfigError(f"ZenML's {finding.name}: {finding.found}: {finding.remedy}")


def _said_elsewhere(record: logging.LogRecord) -> bool:
    """Keep off the terminal what run.py itself says in one line: errors a user can mend, and ZenML's echo of them."""
    if not record.name.startswith("zenml"):
        return True
    if record.exc_info:
        return not isinstance(record.exc_info[1], FoundryError | Preempted)
    return record.levelno >= logging.ERROR and not record.name.startswith("zenml.orchestrators")
