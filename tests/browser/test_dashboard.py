"""The dashboard as a visitor sees it: a finished run of the demo, in headless Chromium, with no other host to ask."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.browser.visitor import Visitor, chromium_at, visit
from tests.e2e.machines import SMALL, Machine

pytestmark = [pytest.mark.browser, pytest.mark.e2e, pytest.mark.timeout(600)]

TRAIN = {
    "steps": ["ingest", "validate", "split", "fine_tune", "evaluate", "promote", "publish"],
    "artifacts": [
        "chip inventory", "valid chips", "validation report", "chip splits", "model bundle", "training curves",
        "evaluation on test chips", "promotion decision", "published archive",
    ],
}  # fmt: skip
DEPLOY = {
    "steps": ["select_model", "place", "deploy", "test_endpoint"],
    "artifacts": ["model in production", "test chips", "archive in place", "endpoint", "inference test"],
}
WITH_PICTURES = {"chip inventory", "chip splits", "training curves", "evaluation on test chips", "inference test"}


@dataclass(frozen=True)
class Site:
    """A dashboard with one finished run. `pages`: address by "train", "deploy" and "model"."""

    summary: dict[str, Any]
    pages: dict[str, str]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, chromium: str) -> Iterator[Site]:
    machine = Machine(tmp_path_factory.mktemp("machine"))
    try:
        summary = machine.summary(*SMALL)
        told = machine.run("dashboard", "--no-open").stdout
        addresses = re.findall(r"http://\S+", told)
        ids = {run["id"]: run["pipeline"] for run in summary["runs"]}
        pages = {next((ids[run] for run in ids if run in address), "model"): address for address in addresses}
        assert set(pages) == {"train", "deploy", "model"}, told
        yield Site(summary, pages)
    finally:
        for command in (("dashboard", "--stop"), ("endpoints", "--delete", "burn_scars")):
            subprocess.run(machine.command(*command), env=machine.environment, capture_output=True, timeout=120)


@pytest.fixture(scope="module")
def guest(site: Site, chromium: str) -> Iterator[Visitor]:
    """Has answered what ZenML asks at the first visit."""
    with chromium_at(chromium) as browser:
        visitor = visit(browser)
        visitor.finish_survey(site.pages["train"])
        yield visitor


@pytest.fixture
def visitor(guest: Visitor) -> Iterator[Visitor]:
    guest.asked.clear()
    guest.complaints.clear()
    yield guest
    assert guest.asked == [], "the dashboard asks other hosts"
    assert guest.complaints == [], "the browser complains"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the screenshots are kept: HLS_SCREENSHOTS, else a temporary folder."""
    chosen = os.environ.get("HLS_SCREENSHOTS")
    return Path(chosen) if chosen else tmp_path_factory.mktemp("screenshots")


@pytest.mark.parametrize(("pipeline", "shown"), [("train", TRAIN), ("deploy", DEPLOY)])
def test_the_graph_names_every_step_and_artifact(
    visitor: Visitor, site: Site, pictures: Path, pipeline: str, shown: dict[str, list[str]]
) -> None:
    visitor.open_run(site.pages[pipeline])
    assert sorted(visitor.steps()) == sorted(shown["steps"])
    assert sorted(visitor.artifacts()) == sorted(shown["artifacts"])
    visitor.picture(pictures / f"{pipeline}.png")


@pytest.mark.parametrize(("pipeline", "shown"), [("train", TRAIN), ("deploy", DEPLOY)])
def test_every_visualisation_draws(visitor: Visitor, site: Site, pictures: Path, pipeline: str, shown: dict[str, list[str]]) -> None:
    visitor.open_run(site.pages[pipeline])
    for name in shown["artifacts"]:
        with visitor.artifact(name) as panel:
            frame = visitor.preview(panel)
            assert len(frame.inner_text("body")) > 20, f"{name}: an empty page"
            widths = frame.eval_on_selector_all("img", "images => images.map(image => image.complete ? image.naturalWidth : 0)")
            assert all(width > 100 for width in widths), f"{name}: a picture is not drawn"
            assert widths or name not in WITH_PICTURES, f"{name}: no picture"
            visitor.picture(pictures / f"{pipeline} {name}.png".replace(" ", "_"))


def test_the_metadata_of_run_and_artifact_say_what_it_came_to(visitor: Visitor, site: Site, pictures: Path) -> None:
    visitor.open_run(site.pages["train"])
    visitor.page.get_by_role("tab", name="Metadata").click()
    for category in ("archive", "baseline", "chips", "model", "test", "weights"):
        visitor.page.get_by_role("button", name=category, exact=True).wait_for()
    visitor.page.get_by_text("code", exact=True).wait_for()
    visitor.picture(pictures / "metadata.png")
    with visitor.artifact("chip inventory") as panel:
        panel.get_by_role("tab", name="Metadata").click()
        panel.get_by_text(site.summary["data"]["fingerprint"]).wait_for()


def test_the_model_page_shows_version_stage_metrics_archive_endpoint_and_card(visitor: Visitor, site: Site, pictures: Path) -> None:
    page, summary = visitor.page, site.summary
    page.goto(site.pages["model"])
    said = page.inner_text("body")
    archive, endpoint = summary["model"], summary["endpoint"]
    for expected in ("production", archive["uri"], archive["sha256"], endpoint["url"], "running", "Model card"):
        assert expected in said
    assert f"{summary['metrics']['test']['iou']:.3f}" in said
    visitor.picture(pictures / "model.png", full_page=True)
    page.get_by_role("link", name=summary["runs"][0]["name"]).click()
    page.locator(".react-flow__node").first.wait_for()
    assert summary["runs"][0]["id"] in page.url
