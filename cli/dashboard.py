"""Show the lineage in ZenML's dashboard: start its server on this machine, and say where the latest run and its model are."""

from __future__ import annotations

import os
import socket
import sys
import webbrowser
from itertools import islice
from typing import TYPE_CHECKING
from uuid import UUID

import click

from cli.dashboard_process import Dashboard, DashboardServer
from cli.runs import OUR_NAME, find_run, latest_run, our_runs
from cli.session import start_zenml
from cli.summary import RUN
from hls_foundry.errors import ConfigError

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse

SQLITE = "sqlite:"


def show(task: str | None, run: str | None, *, port: int | None, open_browser: bool) -> None:
    """Start the dashboard where it is not up and print the pages of a run, of the task's other pipeline and of its model.

    `task`: the latest run of that task (none: of any); `run`: that one, by name or id. The first page is opened where there is a
    terminal and a display. Raises FoundryError (one line).
    """
    start_zenml()
    runs = _runs(task, run)
    server = _server()
    if server is None:
        pages = [(_headline(found), _remote_url(found)) for found in runs]
    else:
        dashboard = server.start(port, _local_stores())
        pages = [(_headline(found), _with_key(dashboard, _path(found.id))) for found in runs]
        pages += [(f"model {name}", _with_key(dashboard, f"/hls/models/{name}")) for name in _models(runs[0])]
    for headline, url in pages:
        click.echo(f"{headline}\n  {url}")
    if server is not None:
        click.echo(f"it answers until: {RUN} dashboard --stop")
        if os.environ.get("SSH_CONNECTION") and not _has_display():
            here = f"{dashboard.port}:127.0.0.1:{dashboard.port}"
            click.echo(f"from where you sit: ssh -N -L {here} {socket.gethostname()}, then open the address there")
    if open_browser and sys.stdout.isatty() and _has_display():
        webbrowser.open(pages[0][1])


def stop() -> None:
    """Stop the dashboard of this store. Raises ConfigError where it is a server of somebody else's."""
    start_zenml()
    server = _server()
    if server is None:
        raise ConfigError("the dashboard is that of the ZenML server that you are logged in to: it is not stopped from here")
    click.echo("the dashboard was stopped" if server.stop() else "no dashboard runs on this machine")


def run_url(run: PipelineRunResponse) -> str | None:
    """The page of `run`, without the key, where a dashboard is up. Needs a session of ZenML."""
    from zenml.client import Client
    from zenml.utils.dashboard_utils import get_run_url

    if not Client().zen_store.url.startswith(SQLITE):  # a server knows its own address; a database has no pages
        return get_run_url(run)
    server = _server()
    dashboard = server.running() if server else None
    return f"{dashboard.url}{_path(run.id)}" if dashboard else None


def _server() -> DashboardServer | None:
    """The server of ZenML's store; None where the store is a server itself, which has its own dashboard."""
    from zenml.client import Client
    from zenml.enums import StoreType

    store = Client().zen_store
    if store.type == StoreType.REST:
        return None
    if not store.url.startswith(SQLITE):
        raise ConfigError("ZenML's store is a MySQL database: run ZenML's server on it, and zenml login there for its dashboard")
    return DashboardServer(store.url)


def _local_stores() -> str:
    from zenml.config.global_config import GlobalConfiguration

    return GlobalConfiguration().local_stores_path


def _runs(task: str | None, run: str | None) -> list[PipelineRunResponse]:
    """The run that was asked for, then the latest of the same task by the other pipeline. Raises ConfigError where there is none."""
    chosen = find_run(run) if run else latest_run(task)
    name = OUR_NAME.fullmatch(chosen.name)
    if name is None:
        return [chosen]
    others = (found for found in our_runs(name["task"]) if f"-{name['pipeline']}-" not in found.name)
    return [chosen, *islice(others, 1)]


def _models(run: PipelineRunResponse) -> list[str]:
    """The name of the task's model, where it has one by now."""
    from zenml.client import Client

    name = OUR_NAME.fullmatch(run.name)
    return [model.name for model in Client().list_models(name=name["task"]).items] if name else []


def _headline(run: PipelineRunResponse) -> str:
    return f"{run.name}  {run.status.value}"


def _path(run: UUID) -> str:
    return f"/projects/default/runs/{run}"


def _with_key(dashboard: Dashboard, path: str) -> str:
    return f"{dashboard.url}{path}?key={dashboard.key}"


def _remote_url(run: PipelineRunResponse) -> str:
    from zenml.utils.dashboard_utils import get_run_url

    return get_run_url(run) or "its server has no dashboard"


def _has_display() -> bool:
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
