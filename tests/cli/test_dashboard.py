"""run.py dashboard: ZenML's server on this machine, behind a key, on the store that runs go on writing to."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
from collections.abc import Iterator
from datetime import datetime
from http.cookiejar import CookieJar
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPCookieProcessor, OpenerDirector, ProxyHandler, Request, build_opener
from uuid import uuid4

import pytest

from cli.dashboard_process import DashboardServer
from cli.model_page import Version, draw_versions
from hls_foundry.errors import FoundryError
from tests.cli.asked import Session

RUN = "burn_scars-train-20261123-120000-abcd"
LATER = "burn_scars-deploy-20261123-120500-abcd"
METRICS = {"test": {"iou": 0.91, "miou": 0.93, "f1": 0.95, "accuracy": 0.97}, "baseline": {"name": "NBR", "iou": 0.6}}
PRODUCTION = {**METRICS, "promotion": "passes <the> gate", "uri": "/published/2/model.tar.gz", "sha256": "ab" * 32, "pretrained": False}
ENDPOINT = {"name": "burn_scars", "target": "local", "url": "http://127.0.0.1:9", "kind": "realtime", "since": "2026-11-23T12:05:00+00:00"}


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    session = Session(tmp_path_factory.mktemp("home"))
    yield session
    session.run("dashboard", "--stop")
    session.close()


@pytest.fixture(scope="module")
def before_any_run(session: Session) -> dict[str, Any]:
    return session.run("dashboard", "--task", "flood")


@pytest.fixture(scope="module")
def dashboard(session: Session, before_any_run: dict[str, Any]) -> dict[str, Any]:
    """The command's answer with a run and a model in the store; `pages`: the addresses."""
    session.ask("make_run", RUN, {}, {})
    session.ask("make_model", "burn_scars", [METRICS, {**PRODUCTION, "endpoint": ENDPOINT, "published_by": RUN}])
    answer = session.run("dashboard", "--no-open")
    assert answer["code"] == 0, answer
    return {**answer, "pages": re.findall(r"http://\S+", answer["out"])}


@pytest.fixture(scope="module")
def browser(dashboard: dict[str, Any]) -> OpenerDirector:
    """Has visited the page with its key, and keeps cookies."""
    opener = build_opener(ProxyHandler({}), HTTPCookieProcessor(CookieJar()))
    with opener.open(dashboard["pages"][0], timeout=60) as reply:
        assert "key=" not in reply.url
        assert "<title>ZenML Dashboard</title>" in reply.read().decode()
    return opener


def origin(dashboard: dict[str, Any]) -> str:
    return "/".join(dashboard["pages"][0].split("/")[:3])


def test_without_runs_it_says_how_to_start_one_and_starts_nothing(before_any_run: dict[str, Any]) -> None:
    assert before_any_run["code"] == 2
    assert re.fullmatch(r"error: no runs of task 'flood' yet: \S+ run.py --task flood starts one\n", before_any_run["err"])


def test_it_prints_the_pages_of_run_and_model_and_how_to_stop(dashboard: dict[str, Any]) -> None:
    run, model = dashboard["pages"]
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/projects/default/runs/[0-9a-f-]{36}\?key=\S{20,}", run)
    assert "/hls/models/burn_scars?key=" in model
    assert dashboard["out"].startswith(f"{RUN}  failed\n")
    assert "run.py dashboard --stop" in dashboard["out"]
    assert dashboard["err"] == ""


def test_nobody_gets_in_without_the_key(dashboard: dict[str, Any]) -> None:
    stranger = build_opener(ProxyHandler({}))
    for path in ("/", "/api/v1/info", "/hls/models", "/?key=wrong", "/assets/none.js"):
        with pytest.raises(HTTPError) as refusal:
            stranger.open(origin(dashboard) + path, timeout=30)
        assert refusal.value.code == 403
        assert "run.py dashboard" in refusal.value.read().decode()


def test_a_page_of_another_origin_gets_nothing(dashboard: dict[str, Any], browser: OpenerDirector) -> None:
    def asked_by(page: str) -> Request:
        return Request(origin(dashboard) + "/api/v1/info", headers={"Origin": page})

    with browser.open(asked_by(origin(dashboard)), timeout=30) as reply:
        assert reply.status == 200
    for page in ("https://example.org", "null", "http://127.0.0.1:9"):
        with pytest.raises(HTTPError, match="403"):
            browser.open(asked_by(page), timeout=30)


def test_its_pages_may_ask_no_other_host(dashboard: dict[str, Any], browser: OpenerDirector) -> None:
    with browser.open(origin(dashboard) + "/projects/default/runs", timeout=30) as reply:
        policy = reply.headers.get_all("Content-Security-Policy")
    assert len(policy) == 1
    assert "default-src 'none'" in policy[0]
    assert "http" not in policy[0]


def test_runs_go_on_beside_it_and_it_shows_them(session: Session, dashboard: dict[str, Any], browser: OpenerDirector) -> None:
    before = session.ask("store")
    assert before["type"] == "sql"
    session.ask("make_run", LATER, {}, {})
    with browser.open(origin(dashboard) + "/api/v1/runs?size=50", timeout=30) as reply:
        shown = {run["name"] for run in json.load(reply)["items"]}
    assert {RUN, LATER} <= shown
    again = session.run("dashboard", "--task", "burn_scars", "--no-open")
    assert again["out"].startswith(f"{LATER}  failed\n  {origin(dashboard)}/"), "the latest run first, from the same server"
    assert f"\n{RUN}  failed\n" in again["out"]
    assert session.run("dashboard", "--run", RUN, "--no-open")["out"].startswith(RUN)
    assert "no run 'nothing': python run.py status lists them" in session.run("dashboard", "--run", "nothing")["err"]
    assert session.ask("store") == before


def test_a_summary_has_the_address_of_the_run(session: Session, dashboard: dict[str, Any]) -> None:
    summary = session.ask("summarise", RUN)
    url = dashboard["pages"][0].partition("?")[0]
    assert summary["json"]["runs"][0]["url"] == url
    assert f"lineage     {url}" in summary["lines"]


def test_the_model_page_is_drawn_from_the_store(dashboard: dict[str, Any], browser: OpenerDirector) -> None:
    with browser.open(origin(dashboard) + "/hls/models/burn_scars", timeout=30) as reply:
        page = reply.read().decode()
    for said in ("2 versions", "0.910", "passes &lt;the&gt; gate", "/published/2/model.tar.gz", "<td>deleted</td>", "<td>no</td>"):
        assert said in page
    assert re.search(rf'<a href="/projects/default/runs/[0-9a-f-]{{36}}">{RUN}</a>', page)
    with browser.open(origin(dashboard) + "/hls/models", timeout=30) as reply:
        assert 'href="/hls/models/burn_scars"' in reply.read().decode()
    with pytest.raises(HTTPError, match="404"):
        browser.open(origin(dashboard) + "/hls/models/nothing", timeout=30)


def test_stopped_it_is_gone_and_comes_back_at_the_same_address(session: Session, dashboard: dict[str, Any]) -> None:
    assert session.run("dashboard", "--stop")["out"] == "the dashboard was stopped\n"
    assert session.run("dashboard", "--stop")["out"] == "no dashboard runs on this machine\n"
    summary = session.ask("summarise", RUN)
    assert summary["json"]["runs"][0]["url"] is None
    assert any(re.fullmatch(r"lineage     \S+ run.py dashboard", line) for line in summary["lines"])
    port = int(origin(dashboard).rpartition(":")[2])
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        refused = session.run("dashboard", "--port", str(port))
    assert refused["code"] == 2
    assert f"port {port} cannot be used for the dashboard (Address already in use)" in refused["err"]
    assert session.run("dashboard", "--no-open", "--run", RUN)["out"].split()[2] == dashboard["pages"][0]


def test_a_server_that_ends_says_why_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HLS_FOUNDRY_HOME", str(tmp_path))
    monkeypatch.setenv("ZENML_SERVER_THREAD_POOL_SIZE", "many")
    server = DashboardServer(f"sqlite:///{tmp_path / 'zenml.db'}")
    with pytest.raises(FoundryError, match=r"the dashboard's server ended: .+ \(log: \S+server\.log\)") as told:
        server.start(None, str(tmp_path))
    assert "\n" not in str(told.value)
    assert server.running() is None


def test_without_zenmls_server_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HLS_FOUNDRY_HOME", str(tmp_path))
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jwt" else known(name))
    with pytest.raises(FoundryError, match=r"no module 'jwt'.*zenml\[server\]==\d"):
        DashboardServer("sqlite:///none").start(None, str(tmp_path))


def test_the_model_page_without_a_production_version() -> None:
    page = draw_versions("flood", [Version("1", "none", datetime(2026, 11, 23), {"promotion": "not promoted"}, {})])
    for said in ("Flood: the model and its versions", "No version is in production.", "not promoted", "1 version."):
        assert said in page


def test_a_run_in_a_database_of_ones_own_has_no_page_and_its_summary_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from zenml.client import Client
    from zenml.enums import StoreType
    from zenml.models import PipelineRunResponse

    from cli.dashboard import run_url

    database = SimpleNamespace(type=StoreType.SQL, url="mysql://127.0.0.1:9/zenml")
    monkeypatch.setattr(Client, "zen_store", property(lambda client: database))
    assert run_url(PipelineRunResponse.model_construct(id=uuid4())) is None
