"""A visitor of the dashboard in headless Chromium: what they click, what they see, and what their browser complains of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Frame, Locator, Page, Route, sync_playwright

# Without the background-networking flags Chromium looks for Google's hosts at each start; ZenML's survey animates in WebGL, which
# takes a whole core where there is no graphics card.
SWITCHES = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-3d-apis",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
ZENMLS_OWN = re.compile(  # its pages ask these hosts for a logo, an avatar and news; the dashboard's policy keeps the browser from it
    r"https://(public-flavor-logos\.s3\.[a-z0-9-]+\.amazonaws\.com|avatar\.vercel\.sh|raw\.githubusercontent\.com/zenml-io)/"
    r"|Loading the image 'about:blank'|WebGL is not supported in this browser"
)
HERE = ("http://127.0.0.1:", "data:", "blob:", "about:")
PATIENCE_MS = 60_000  # two cores, shared with other tests


class Visitor:
    """One browser page. `asked`: requests to other hosts; `complaints`: errors on the console that are not ZenML's own."""

    def __init__(self, page: Page) -> None:
        self.page, self.asked, self.complaints = page, [], []  # type: Page, list[str], list[str]
        page.set_default_timeout(PATIENCE_MS)
        page.context.route("**/*", self._gate)
        page.on("console", lambda message: self._complain(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self._complain(str(error)))

    def _gate(self, route: Route) -> None:
        if route.request.url.startswith(HERE):
            route.continue_()
        else:
            self.asked.append(route.request.url)
            route.abort()

    def _complain(self, text: str) -> None:
        if not ZENMLS_OWN.search(text):
            self.complaints.append(text)

    def finish_survey(self, url: str) -> None:
        """The questions that ZenML asks at the first visit of a store."""
        page = self.page
        page.goto(url)
        page.get_by_label("Name").fill("A visitor")
        page.get_by_label("Email").fill("visitor@example.org")
        page.get_by_text("I want to receive news").click()
        page.get_by_role("button", name="Continue").click()
        page.get_by_text("Student").click()
        page.get_by_text("My Laptop").click()
        page.get_by_role("button", name="Continue").click()
        page.get_by_text("Skip this step").click()
        page.get_by_text("Go to Dashboard").click()
        page.wait_for_url("**/onboarding")

    def open_run(self, url: str) -> None:
        self.page.goto(url)
        self.page.locator(".react-flow__node").first.wait_for()

    def hide_banner(self) -> None:
        """Close what ZenML advertises above its pages."""
        self.page.locator("[role=alert] button").click()

    def steps(self) -> list[str]:
        """What the graph's boxes of steps say."""
        return self._boxes("step")

    def artifacts(self) -> list[str]:
        """What its boxes of artifacts say, without their type."""
        return self._boxes("artifact")

    def _boxes(self, kind: str) -> list[str]:
        boxes = self.page.locator(f".react-flow__node-{kind}")
        return [box.inner_text().splitlines()[0] for box in boxes.all() if box.is_visible()]

    @contextmanager
    def artifact(self, name: str) -> Iterator[Locator]:
        """The panel of an artifact, open while the body runs."""
        self.page.locator(f'.react-flow__node-artifact[data-id$="/{name}"]').click()
        panel = self.page.get_by_role("dialog")
        panel.get_by_text(name, exact=True).first.wait_for()
        yield panel
        self.page.keyboard.press("Escape")
        panel.wait_for(state="hidden")

    def preview(self, panel: Locator) -> Frame:
        """The frame with the artifact's page, once that is drawn."""
        panel.get_by_role("tab", name="Visualization").click()
        panel.get_by_role("button", name="Load Preview").click()
        handle = panel.locator("iframe").element_handle()
        frame = handle.content_frame()
        assert frame is not None
        frame.wait_for_load_state("load")
        return frame

    def picture(self, file: Path, **options: Any) -> None:
        """A screenshot of the page as it is."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self.page.wait_for_timeout(700)  # until nothing slides any more
        self.page.screenshot(path=file, **options)


@contextmanager
def chromium_at(executable: str) -> Iterator[Browser]:
    """A headless Chromium with an empty profile."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(SWITCHES))
        yield browser
        browser.close()


def visit(browser: Browser, *, width: int = 1400, height: int = 1000) -> Visitor:
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme="light", locale="en-GB")
    return Visitor(context.new_page())
