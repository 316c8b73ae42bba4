"""Pictures of a page: drawn once, embedded in HTML, and written as PNG files for whoever wants them on a slide."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 110
JPEG_QUALITY = 88

# Colour-blind safe (Okabe & Ito 2008).
BLUE, ORANGE, GREEN, VERMILLION, SKY, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#6b7280"


@dataclass(frozen=True, eq=False)
class Picture:
    """`pixels`: uint8 (h, w, 3). `alternative`: what it shows, for who cannot see it. `imagery`: of satellites, compressed as photos."""

    name: str  # of its PNG file, without the ending
    alternative: str
    pixels: npt.NDArray[np.uint8] = field(repr=False)
    imagery: bool = False
    caption: str = ""

    def html(self) -> str:
        """The picture inside the page."""
        form, options = ("jpeg", {"quality": JPEG_QUALITY}) if self.imagery else ("png", {})
        data = base64.b64encode(self._encoded(form, **options)).decode()
        height, width = self.pixels.shape[:2]
        image = f'<img alt="{html.escape(self.alternative)}" width="{width}" height="{height}" src="data:image/{form};base64,{data}">'
        caption = f"<figcaption>{html.escape(self.caption)}</figcaption>" if self.caption else ""
        return f"<figure>{image}{caption}</figure>"

    def png(self) -> bytes:
        """A PNG file's content."""
        return self._encoded("png")

    def _encoded(self, form: str, **options: Any) -> bytes:
        from PIL import Image  # comes with matplotlib

        buffer = io.BytesIO()
        Image.fromarray(self.pixels).save(buffer, format=form, **options)
        return buffer.getvalue()


def drawn(figure: Figure, name: str, alternative: str, *, imagery: bool = False, caption: str = "") -> Picture:
    """Draw a figure of matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(DPI)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.array(np.asarray(canvas.buffer_rgba())[..., :3], copy=True)
    return Picture(name, alternative, pixels, imagery, caption)


def write_pictures(pictures: Iterable[Picture], folder: Path) -> list[Path]:
    """Write each as FOLDER/NAME.png, replacing what was there once the new one is whole. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for picture in pictures:
        path = folder / f"{re.sub(r'[^A-Za-z0-9_-]+', '_', picture.name)}.png"
        partial = path.with_name(f".{path.name}.partial")
        try:
            partial.write_bytes(picture.png())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        written.append(path)
    return written
