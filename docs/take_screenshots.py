"""Write docs/images from a run of the demo: the dashboard's graph and model page, and the README's test chips.  make pictures

Options are run.py's, for another run than the demo's. Run, store and dashboard are in a temporary folder, and are gone at the end.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image

from tests.browser.visitor import chromium_at, visit
from tests.e2e.machines import Machine

DOCS = Path(__file__).resolve().parent
IMAGES = DOCS / "images"
MOST_BYTES = 300_000
HEADER = 49  # ZenML's, with a logo from another host, which is not asked


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("error: no Chromium on the PATH: make system installs it")
    with tempfile.TemporaryDirectory(prefix="hls-pictures-") as folder:
        machine = Machine(Path(folder))

        def run(*arguments: str) -> str:
            command = machine.command(*arguments)
            return subprocess.run(command, env=machine.environment, stdout=subprocess.PIPE, text=True, check=True).stdout

        try:
            run(*sys.argv[1:])
            take(chromium, run("dashboard", "--no-open"), IMAGES)
            subprocess.run([sys.executable, str(DOCS / "draw_readme_picture.py")], env=machine.environment, check=True)
            shrink(IMAGES / "burn_scars.png")
        finally:
            for command in (("dashboard", "--stop"), ("endpoints", "--delete", "burn_scars")):
                subprocess.run(machine.command(*command), env=machine.environment, capture_output=True)


def take(chromium: str, told: str, folder: Path) -> None:
    """Screenshots of the pages that `run.py dashboard` told."""
    train = re.search(r"-train-.*\n +(\S+)", told)
    model = re.search(r"^model .*\n +(\S+)", told, re.MULTILINE)
    assert train, told
    assert model, told
    with chromium_at(chromium) as browser:
        visitor = visit(browser, width=1500, height=1150)
        visitor.finish_survey(train[1])
        visitor.open_run(train[1])
        visitor.page.get_by_role("tab", name="Metadata").click()
        for category in ("test", "model", "chips"):
            visitor.page.get_by_role("button", name=category, exact=True).click()
        visitor.hide_banner()
        visitor.picture(folder / "lineage.png", clip={"x": 0, "y": HEADER, "width": 1500, "height": 1150 - HEADER})
        visitor.page.set_viewport_size({"width": 1180, "height": 1000})
        visitor.page.goto(model[1])
        visitor.picture(folder / "model.png")
    for name in ("lineage.png", "model.png"):
        shrink(folder / name)


def shrink(file: Path) -> None:
    """Fewer colours, which nobody sees: a third of the bytes."""
    Image.open(file).convert("RGB").quantize(256).save(file, optimize=True)
    size = file.stat().st_size
    assert size < MOST_BYTES, f"{file} has {size} bytes"
    print(f"{file}: {size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
