"""Pages that load nothing, escape what comes from data, and carry pictures that can be read aloud and saved."""

from __future__ import annotations

import base64
import io
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hls_foundry.report import Picture, Section, commands, facts, folded, note, page, table, tiles
from hls_foundry.report.elements import MAX_ROWS
from hls_foundry.report.picture import write_pictures

BAD = "<img src=http://x/y.png onerror=alert(1)>"


def test_whatever_comes_from_data_is_text() -> None:
    parts = (tiles({BAD: BAD}), table([{BAD: BAD}]), facts({BAD: BAD}), note(BAD), commands([BAD]), folded(BAD, ""))
    made = page(BAD, BAD, [Section(BAD, *parts)], contents=True)
    assert "<img" not in made
    assert "onerror=alert(1)&gt;" in made
    assert "default-src 'none'" in made


def test_numbers_are_rounded_and_what_is_missing_is_a_dash() -> None:
    made = table(
        [{"share": 0.123456, "score": 0.8, "pixels": 1234567, "hectares": 1234567.8, "nothing": None, "nan": math.nan, "yes": True}]
    )
    assert re.findall(r"<td[^>]*>([^<]*)</td>", made) == ["0.1235", "0.8000", "1,234,567", "1,234,568", "–", "–", "yes"]


def test_a_table_of_thousands_is_cut_and_says_so() -> None:
    made = table([{"chip": number} for number in range(MAX_ROWS + 234)])
    assert made.count("<tr>") == MAX_ROWS + 1
    assert "and 234 more" in made


@pytest.fixture
def picture() -> Picture:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    return Picture("a map/of chips", 'chips "A" & <B>', pixels)


def test_a_picture_is_inside_the_page_and_says_what_it_shows(picture: Picture) -> None:
    html = picture.html()
    assert 'alt="chips &quot;A&quot; &amp; &lt;B&gt;"' in html
    assert 'width="60" height="40"' in html
    data = re.search(r'src="data:image/png;base64,([^"]+)"', html)
    assert data
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data[1])))), picture.pixels)


def test_imagery_is_embedded_smaller_and_saved_exactly(picture: Picture, tmp_path: Path) -> None:
    imagery = Picture("imagery", "noise", picture.pixels, imagery=True)
    assert "data:image/jpeg;base64," in imagery.html()
    (written,) = write_pictures([imagery], tmp_path / "new" / "folder")
    np.testing.assert_array_equal(np.asarray(Image.open(written)), picture.pixels)


def test_pictures_replace_those_of_another_run_and_stay_in_their_folder(picture: Picture, tmp_path: Path) -> None:
    for _ in range(2):
        assert write_pictures([picture], tmp_path) == [tmp_path / "a_map_of_chips.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["a_map_of_chips.png"]
