"""The Data Docs page opens offline: nothing is loaded from outside, it is small, and a browser draws it."""

from __future__ import annotations

import http.server
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hls_foundry.validation.docs import render_page
from hls_foundry.validation.expectations import run_suite
from hls_foundry.validation.report import ValidationReport
from hls_foundry.validation.suite import build_suite

from .conftest import configuration, judge, pairs

ROOT = Path(__file__).resolve().parents[2]
LOADS = re.compile(
    r"""<(?:script|link|img|iframe|object|embed)\b[^>]*\b(?:src|href)\s*=\s*["']?(?!data:)[^"'\s>]|@import|url\((?!["']?data:)""", re.I
)


@pytest.fixture(scope="module")
def failing(sound: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> ValidationReport:
    root = Path(shutil.copytree(sound["burn_scars"], tmp_path_factory.mktemp("docs") / "chips"))
    for image, mask in pairs(root)[:4]:
        mask.unlink()
        assert image.exists()
    return judge(root, "burn_scars")


def test_page_loads_nothing_and_says_first_what_to_do(failing: ValidationReport) -> None:
    page = failing.to_html()
    assert not LOADS.search(page)
    assert "<script" not in page
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?:https?:)?//", page)
    assert page.index("4 of 20 chips are bad") < page.index("add the missing file") < page.index("Great Expectations Data Docs")
    assert all(chip in page for chip in failing.quarantined["chip"])


def test_names_of_chips_cannot_inject_markup(failing: ValidationReport) -> None:
    config = configuration("burn_scars")
    table = pd.DataFrame({"chip": ["<script>alert(1)</script>"], "missing_file": ["the image has no <b>mask</b>"]})
    checks = build_suite(config.task, config.validation, split=False)[:1]
    outcome = run_suite(table, checks)
    page = render_page(config.task, config.validation, failing.checks, table[["chip", "missing_file"]], "<i>", 1, outcome)
    assert "<script>" not in page
    assert "<b>mask" not in page
    assert "<i>" not in page


def test_page_of_hundreds_of_bad_chips_stays_small(sound: dict[str, Path]) -> None:
    config = configuration("burn_scars")
    random = np.random.default_rng(0)
    names = [f"subsetted_512x512_HLS.S30.T10TGS.{number:07d}.v1.4" for number in range(800)]
    checks = build_suite(config.task, config.validation, split=True)
    columns = {check.column: random.random(800) * 10_000 for check in checks}
    columns |= {check.column: ["so and so many pixels"] * 800 for check in checks if check.expectation == "ExpectColumnValuesToBeNull"}
    table = pd.DataFrame({"chip": names, **columns, "dtype": "complex64"})
    outcome = run_suite(table, checks)
    quarantined = pd.DataFrame({"chip": names, "reasons": "one; two; three; four; five reasons in words that are not too short"})
    page = render_page(config.task, config.validation, [], quarantined, "failed", 800, outcome)
    assert len(page.encode()) < 2_000_000
    assert "Unexpected" in page


@pytest.mark.browser
def test_browser_draws_the_page_and_asks_no_one(failing: ValidationReport, chromium: str, tmp_path: Path) -> None:
    asked: list[str] = []

    class Listener(http.server.BaseHTTPRequestHandler):
        """A proxy that every request of the browser would have to pass."""

        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(502)

        def do_CONNECT(self) -> None:
            asked.append(self.path)
            self.send_error(502)

        def log_message(self, *_: object) -> None:
            pass

    page, picture = tmp_path / "docs.html", tmp_path / "docs.png"
    failing.write(page)
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
                   f"--proxy-server=http://127.0.0.1:{proxy.server_address[1]}", f"--user-data-dir={tmp_path / 'profile'}",
                   "--window-size=1250,1600", f"--screenshot={picture}", "--dump-dom", page.as_uri()]  # fmt: skip
        drawn = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout
    finally:
        proxy.shutdown()
        proxy.server_close()
    # The browser itself may look for its vendor's updates; the page must not ask for anything.
    assert [path for path in asked if "google" not in path and "gvt1" not in path] == []
    assert "validation failed" in drawn
    assert picture.stat().st_size > 30_000


def test_great_expectations_says_nothing_where_information_is_logged() -> None:
    code = (
        "import logging; logging.basicConfig(level=logging.INFO)\n"
        "from hls_foundry.validation.expectations import great_expectations\n"
        "with great_expectations(): pass\n"
        "assert logging.getLogger('great_expectations').level == logging.NOTSET\n"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (said.stdout, said.stderr) == ("", "")
