"""Finds chips on disk in the layouts of the two public data sets, with the splits that the data sets' own folders and lists name."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from hls_foundry.errors import SourceError

Layout = Literal["hls_burn_scars", "sen1floods11"]

SPLIT_FOLDERS = {
    "training": "train", "train": "train",
    "validation": "validation", "valid": "validation", "val": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
SPLIT_LISTS = {
    "flood_train_data": "train", "flood_valid_data": "validation", "flood_test_data": "test",
    "flood_bolivia_data": "test",  # the event held out for testing; never trained on
    "train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test", "bolivia": "test",
}  # fmt: skip
"""Stem of a .csv or .txt list → split. flood_*_data.csv: Sen1Floods11's splits/flood_handlabeled; train, val, test: hls_burn_scars'."""

ENDINGS: dict[Layout, tuple[str, str]] = {"hls_burn_scars": ("_merged.tif", ".mask.tif"), "sen1floods11": ("_S2Hand.tif", "_LabelHand.tif")}
LISTED_ENDINGS = ("_S1Hand.tif", "_S2Hand.tif", "_LabelHand.tif", "_merged.tif", ".mask.tif", "_merged", ".mask", ".tif")
DESCRIPTIONS: dict[Layout, str] = {
    "hls_burn_scars": "training/ and validation/ with NAME_merged.tif and NAME.mask.tif",
    "sen1floods11": "S2Hand/NAME_S2Hand.tif and LabelHand/NAME_LabelHand.tif",
}


class ChipFiles(NamedTuple):
    """One chip's files. A mask without an image has `image` None, an image without a mask `mask` None."""

    name: str
    image: Path | None
    mask: Path | None
    listed_split: str
    """"train", "validation", "test" or "" (the data set does not say)."""


def find_chips(root: Path, layout: Layout) -> list[ChipFiles]:
    """All chips below `root`, sorted by name; names are unique.

    hls_burn_scars: `NAME_merged.tif` with `NAME.mask.tif` in the same folder; the folder (training/, validation/, test/) is the
    listed split, or, as the newer archive has it, lists splits/{train,val,test}.txt. sen1floods11: `S2Hand/NAME_S2Hand.tif` with
    `LabelHand/NAME_LabelHand.tif` and the CSV lists flood_{train,valid,test,bolivia}_data.csv anywhere below `root`, beside it,
    or in splits/ beside it (the public archive keeps them two folders above the chips).

    Raises SourceError where `root` is missing, empty, or holds no chip of this layout, or where two files claim one chip.
    """
    if not root.is_dir():
        raise SourceError(f"no folder {root}: give --data (data.source) an existing folder of chips")
    images, masks, files = _collect(root, layout)
    if not images and not masks:
        if files == 0:
            raise SourceError(f"{root} is empty: give --data (data.source) a folder with {DESCRIPTIONS[layout]}")
        raise SourceError(f"{root} holds {files} files but no chip of layout {layout}: it needs {DESCRIPTIONS[layout]}")
    lists = _read_lists(root)
    keys = sorted(images.keys() | masks.keys())
    times = Counter(name for _, name in keys)
    chips = []
    for folder, name in keys:
        image, mask = images.get((folder, name)), masks.get((folder, name))
        within = folder.relative_to(root).as_posix()
        unique = name if times[name] == 1 else f"{within}/{name}"
        by_folder = [SPLIT_FOLDERS[part.lower()] for part in folder.relative_to(root).parts if part.lower() in SPLIT_FOLDERS]
        split = by_folder[-1] if layout == "hls_burn_scars" and by_folder else _listed(name, lists)
        chips.append(ChipFiles(unique, image, mask, split))
    return sorted(chips, key=lambda chip: chip.name)


Key = tuple[Path, str]


def _collect(root: Path, layout: Layout) -> tuple[dict[Key, Path], dict[Key, Path], int]:
    """Images and masks by (the folder that pairs them, name), and the number of all files."""
    images: dict[Key, Path] = {}
    masks: dict[Key, Path] = {}
    count = 0
    image_ending, mask_ending = ENDINGS[layout]
    for folder, names in _walk(root):
        count += len(names)
        for file in names:
            for found, ending, parent in ((images, image_ending, "S2Hand"), (masks, mask_ending, "LabelHand")):
                if not file.lower().endswith(ending.lower()) or (layout == "sen1floods11" and folder.name != parent):
                    continue
                key = (folder.parent if layout == "sen1floods11" else folder, file[: -len(ending)])
                if key in found:
                    raise SourceError(f"{folder / file} and {found[key].name} claim the same chip: remove one of them")
                found[key] = folder / file
    return images, masks, count


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders below `root` with their files, both sorted, hidden ones left out."""
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(folder), sorted(name for name in names if not name.startswith("."))


def split_lists(root: Path) -> list[Path]:
    """The split lists below `root`, else those beside it (they may stay in splits/ up to three folders above)."""
    paths = [folder / name for folder, names in _walk(root) for name in names if _split_of_list(name)]
    if paths:
        return paths
    beside = list(root.resolve().parent.glob("*_data.csv"))
    for up in root.resolve().parents[:3]:
        beside += (up / "splits").rglob("*")
    return [path for path in sorted(set(beside)) if path.is_file() and _split_of_list(path.name)]


def _read_lists(root: Path) -> dict[str, dict[str, Path]]:
    """Chip name → split → the list that says so."""
    lists: dict[str, dict[str, Path]] = {}
    for path in split_lists(root):
        for name in _names_in(path):
            lists.setdefault(name, {}).setdefault(_split_of_list(path.name), path)
    return lists


def _listed(name: str, lists: dict[str, dict[str, Path]]) -> str:
    splits = lists.get(name, {})
    if len(splits) > 1:
        raise SourceError(f"chip {name} is on two lists, {' and '.join(str(path) for path in splits.values())}: take it off one of them")
    return next(iter(splits), "")


def _split_of_list(name: str) -> str:
    stem, dot, ending = name.lower().rpartition(".")
    return SPLIT_LISTS.get(stem, "") if dot and ending in ("csv", "txt") else ""


def _names_in(path: Path) -> set[str]:
    """Chip names on a list: file names or names, one or more a line; other words (a header) match no chip and do no harm."""
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"split list {path} cannot be read ({error}): write it as text, one chip a line") from None
    names = {cell.strip().replace("\\", "/").rpartition("/")[2] for row in rows for cell in row}
    return {name[: len(name) - len(_listed_ending(name))] for name in names if name}


def _listed_ending(name: str) -> str:
    return next((ending for ending in LISTED_ENDINGS if name.lower().endswith(ending.lower())), "")
