"""The layouts: which files make a chip, and which split the data set itself says."""

from __future__ import annotations

from pathlib import Path

import pytest

from hls_foundry.chips.layouts import find_chips
from hls_foundry.errors import SourceError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def splits_of(root: Path, layout: str) -> dict[str, str]:
    return {chip.name: chip.listed_split for chip in find_chips(root, layout)}  # type: ignore[arg-type]


def test_burn_scars_folders_are_the_splits(tmp_path: Path) -> None:
    for place in ("training/b", "training/a", "validation/c", "test/d"):
        touch(tmp_path, f"{place}_merged.tif", f"{place}.mask.tif")
    root = touch(tmp_path, "README.md")
    chips = find_chips(root, "hls_burn_scars")
    assert [chip.name for chip in chips] == ["a", "b", "c", "d"]
    assert [chip.listed_split for chip in chips] == ["train", "train", "validation", "test"]
    assert chips[0].image == root / "training/a_merged.tif"
    assert chips[0].mask == root / "training/a.mask.tif"


def test_an_archive_folder_above_the_splits_is_seen_through(tmp_path: Path) -> None:
    root = touch(tmp_path, "hls_burn_scars/training/a_merged.tif", "hls_burn_scars/validation/b_merged.tif")
    assert splits_of(root, "hls_burn_scars") == {"a": "train", "b": "validation"}


def test_the_newer_burn_scars_archive_has_lists(tmp_path: Path) -> None:
    root = touch(tmp_path, *(f"data/HLS.T10TGS.{i}.v1.4{end}" for i in range(4) for end in ("_merged.tif", ".mask.tif")))
    (root / "splits").mkdir()
    (root / "splits/train.txt").write_text("HLS.T10TGS.0.v1.4\nHLS.T10TGS.1.v1.4_merged.tif\n")
    (root / "splits/val.txt").write_text("HLS.T10TGS.2.v1.4.mask.tif\n")
    assert list(splits_of(root, "hls_burn_scars").values()) == ["train", "train", "validation", ""]


def test_incomplete_pairs_are_kept(tmp_path: Path) -> None:
    root = touch(tmp_path, "training/a_merged.tif", "training/b.mask.tif")
    a, b = find_chips(root, "hls_burn_scars")
    assert (a.image is not None, a.mask) == (True, None)
    assert (b.image, b.mask) == (None, root / "training/b.mask.tif")


def test_one_name_in_two_folders_stays_two_chips(tmp_path: Path) -> None:
    root = touch(tmp_path, "training/a_merged.tif", "validation/a_merged.tif")
    assert splits_of(root, "hls_burn_scars") == {"training/a": "train", "validation/a": "validation"}


@pytest.mark.parametrize(
    ("chips", "lists"),
    [
        ("", "splits"),
        ("", "."),
        ("v1.1/data/flood_events/HandLabeled", "v1.1/splits/flood_handlabeled"),
    ],
)
def test_flood_lists_are_found_wherever_the_archive_keeps_them(tmp_path: Path, chips: str, lists: str) -> None:
    names = ("Ghana_1", "Spain_2", "India_3", "Bolivia_4", "Nigeria_5")
    touch(tmp_path / chips, *(f"S2Hand/{name}_S2Hand.tif" for name in names), *(f"LabelHand/{name}_LabelHand.tif" for name in names))
    folder = tmp_path / lists
    folder.mkdir(parents=True, exist_ok=True)
    for stem, name in (("flood_train", "Ghana_1"), ("flood_valid", "Spain_2"), ("flood_test", "India_3"), ("flood_bolivia", "Bolivia_4")):
        (folder / f"{stem}_data.csv").write_text(f"{name}_S1Hand.tif,{name}_LabelHand.tif\n")
    expected = {"Bolivia_4": "test", "Ghana_1": "train", "India_3": "test", "Nigeria_5": "", "Spain_2": "validation"}
    assert splits_of(tmp_path, "sen1floods11") == expected
    if chips:
        assert splits_of(tmp_path / chips, "sen1floods11") == expected


def test_a_chip_on_two_lists_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "S2Hand/Ghana_1_S2Hand.tif")
    for stem in ("flood_train", "flood_test"):
        (tmp_path / f"{stem}_data.csv").write_text("Ghana_1_S2Hand.tif\nOther_1_S2Hand.tif\n")
    with pytest.raises(SourceError, match="Ghana_1 is on two lists"):
        find_chips(tmp_path, "sen1floods11")


def test_folders_without_chips_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no folder"):
        find_chips(tmp_path / "none", "sen1floods11")
    with pytest.raises(SourceError, match="is empty"):
        find_chips(tmp_path, "sen1floods11")
    touch(tmp_path, "training/a_merged.tif")
    with pytest.raises(SourceError, match=r"1 files but no chip of layout sen1floods11: it needs S2Hand/NAME_S2Hand\.tif"):
        find_chips(tmp_path, "sen1floods11")


@pytest.mark.real_data
def test_the_real_flood_sample_is_one_chip(shared_data: Path) -> None:
    (chip,) = find_chips(shared_data / "sen1floods11", "sen1floods11")
    assert chip.name == "Spain_7370579"
    assert chip.mask is not None
