"""The splits: lists win, neighbours stay together, and a leak that was planted is found."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hls_foundry.chips.inventory import EMPTY_ROW, Inventory, build_inventory
from hls_foundry.chips.splits import SPLITS, check_leakage, group_chips, split_chips
from hls_foundry.config import DataConfig, TaskConfig
from hls_foundry.errors import SplitError

ROOT = Path("somewhere")
DAY = date(2020, 6, 1)


def settings(**changes: Any) -> DataConfig:
    return DataConfig(source="unused", bands="auto", scale="auto", nodata=None, **changes)


def chip(name: str, **changes: Any) -> dict[str, Any]:
    """An inventory row of a sound 512-pixel chip without georeferencing, tile or date."""
    return dict(EMPTY_ROW, chip=name, digest=f"digest of {name}", positive_share=0.1, width=512, height=512, same_grid=True) | changes


def placed(name: str, column: float, row: float, **changes: Any) -> dict[str, Any]:
    """The same on a UTM grid, `column` and `row` in chip widths."""
    transform = (30.0, 0.0, 500_000 + column * 15_360, 0.0, -30.0, 5_200_000 - row * 15_360)
    return chip(name, crs="EPSG:32610", transform=transform, **changes)


def inventory(rows: list[dict[str, Any]]) -> Inventory:
    return Inventory(pd.DataFrame(rows, columns=list(EMPTY_ROW)), ROOT, "burn_scars")


def random_inventory(seed: int) -> Inventory:
    """Chips over a few tiles and weeks, some dates and tiles unknown, some moved by part of a chip, some copied."""
    random = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for index in range(int(random.integers(30, 120))):
        tile = f"10T{'GSHK'[random.integers(4)]}{'ABCDEFGH'[random.integers(8)]}" if random.random() < 0.8 else ""
        day = (DAY + timedelta(days=int(random.integers(0, 900)))).isoformat() if random.random() < 0.95 else ""
        known = {"tile": tile, "date": day, "positive_share": float(random.random() * (random.random() < 0.6))}
        if random.random() < 0.7:
            rows.append(placed(f"chip{index}", random.integers(0, 40) + random.random(), random.integers(0, 40) + random.random(), **known))
        else:
            rows.append(chip(f"chip{index}", **known))
        if rows and random.random() < 0.05:
            rows[-1]["digest"] = rows[random.integers(len(rows))]["digest"]
    return inventory(rows)


@pytest.mark.parametrize("seed", range(40))
def test_any_splits_are_proven_clean_and_a_planted_leak_is_found(seed: int) -> None:
    data = settings(split_seed=seed, neighbouring_days=[0, 7, 16, 60][seed % 4])
    splits = split_chips(random_inventory(seed), data)
    table = splits.table
    assert set(table["split"]) == set(SPLITS)
    assert (splits.of("train").positive_share > 0).any()
    assert check_leakage(table, data.neighbouring_days) == []

    groups = group_chips(table, data.neighbouring_days)
    shared = [group for group in np.unique(groups) if (groups == group).sum() > 1]
    row = np.flatnonzero(groups == shared[0])[0]
    moved = table.copy()
    moved.loc[row, "split"] = next(split for split in SPLITS if split != table.loc[row, "split"])
    leaks = check_leakage(moved, data.neighbouring_days)
    assert leaks
    assert any(table.loc[row, "chip"] in line for line in leaks)


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_the_rows_does_not_matter(seed: int) -> None:
    one = random_inventory(seed)
    other = inventory(one.table.sample(frac=1, random_state=seed).to_dict("records"))
    first, second = (split_chips(each, settings()).table.set_index("chip")["split"].sort_index() for each in (one, other))
    assert first.equals(second)
    assert not first.equals(split_chips(one, settings(split_seed=1)).table.set_index("chip")["split"].sort_index())


def test_shares_and_positives_are_near_what_was_asked() -> None:
    rows = [chip(f"chip{index}", positive_share=0.2 * (index % 3 == 0)) for index in range(200)]
    table = split_chips(inventory(rows), settings(test_share=0.25, validation_share=0.2)).table
    counts = table["split"].value_counts()
    assert counts["test"] == 50
    assert counts["validation"] == 30, "20 % of the remaining 150"
    for _, part in table.groupby("split"):
        assert (part.positive_share > 0).mean() == pytest.approx(1 / 3, abs=0.05)


def test_three_chips_give_three_splits() -> None:
    for seed in range(10):
        rows = [chip("a"), chip("b", positive_share=0.0), chip("c", positive_share=0.0)]
        table = split_chips(inventory(rows), settings(split_seed=seed)).table
        assert set(table["split"]) == set(SPLITS)
        assert table.set_index("chip")["split"]["a"] == "train", "the only chip with class 1"


def test_the_lists_of_the_data_set_win() -> None:
    rows = [chip(f"{split}{index}", listed_split=split) for split in SPLITS for index in range(4)]
    table = split_chips(inventory(rows), settings()).table
    assert (table["split"] == table["listed_split"]).all()


def test_without_a_test_list_the_test_split_comes_out_of_training() -> None:
    rows = [chip(f"t{index:02d}", listed_split="train") for index in range(30)]
    rows += [chip(f"v{index:02d}", listed_split="validation") for index in range(10)]
    table = split_chips(inventory(rows), settings()).table
    assert table["split"].value_counts().to_dict() == {"train": 22, "validation": 10, "test": 8}
    assert (table["split"][table["listed_split"] == "validation"] == "validation").all()


def test_the_carved_test_split_avoids_neighbours_of_listed_validation_chips() -> None:
    rows = [chip(f"t{index}", listed_split="train", tile=f"10TG{'ABCDEFGHJK'[index]}", date="2020-06-01") for index in range(10)]
    rows += [chip(f"v{index}", listed_split="validation", tile=f"10TG{'ABCDEFGHJK'[index]}", date="2020-06-03") for index in range(6)]
    for seed in range(5):
        table = split_chips(inventory(rows), settings(split_seed=seed)).table.set_index("chip")
        assert set(table.index[table["split"] == "test"]) <= {"t6", "t7", "t8", "t9"}


def test_listed_splits_that_leak_stay_and_are_reported() -> None:
    rows = [chip(split, listed_split=split, tile="10TGS", date=f"2020-06-0{index + 1}") for index, split in enumerate(SPLITS)]
    table = split_chips(inventory(rows), settings()).table
    assert (table["split"] == table["listed_split"]).all()
    assert check_leakage(table, 16) == [
        "train (train) and validation (validation): tile 10TGS, 1 days apart",
        "train (train) and test (test): tile 10TGS, 2 days apart",
        "validation (validation) and test (test): tile 10TGS, 1 days apart",
    ]
    assert check_leakage(table, 0) == []


def test_an_unlisted_chip_joins_its_listed_neighbour() -> None:
    rows = [chip(split, listed_split=split, tile=f"10TG{split[0].upper()}", date="2020-06-01") for split in SPLITS]
    rows += [chip("near the test chip", tile="10TGT", date="2020-06-05", listed_split=""), chip("alone")]
    rows[0]["tile"] = "10TGA"
    table = split_chips(inventory(rows), settings()).table.set_index("chip")
    assert table["split"]["near the test chip"] == "test"
    assert table["split"]["alone"] == "train"


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        (chip("a", tile="10TGS", date="2020-06-01"), chip("b", tile="10TGS", date="2020-06-17"), True),
        (chip("a", tile="10TGS", date="2020-06-01"), chip("b", tile="10TGS", date="2020-06-18"), False),
        (chip("a", tile="10TGS", date="2020-06-01"), chip("b", tile="10TGT", date="2020-06-01"), False),
        (chip("a", tile="10TGS", date="2020-06-01"), chip("b", tile="10TGS"), True),
        (chip("a"), chip("b"), False),
        (chip("a", digest="x"), chip("b", digest="x"), True),
        (placed("a", 0, 0), placed("b", 0.5, 0.5), True),
        (placed("a", 0, 0), placed("b", 1, 0), False),
        (placed("a", 0, 0), placed("b", 1, 1), False),
        (placed("a", 0, 0, date="2020-06-01"), placed("b", 0, 0, date="2020-06-10"), True),
        (placed("a", 0, 0, date="2020-06-01"), placed("b", 0, 0, date="2021-06-10"), False),
    ],
)
def test_what_belongs_together(one: dict[str, Any], other: dict[str, Any], together: bool) -> None:
    table = inventory([one, other]).table
    assert (len(set(group_chips(table, 16))) == 1) == together
    assert bool(check_leakage(table.assign(split=["train", "test"]), 16)) == together
    assert check_leakage(table.assign(split="train"), 16) == []


def test_dates_that_are_near_one_after_the_other_form_one_group() -> None:
    rows = [chip(f"{index}", tile="10TGS", date=(DAY + timedelta(days=10 * index)).isoformat()) for index in range(6)]
    assert set(group_chips(inventory(rows).table, 16)) == {0}
    assert set(group_chips(inventory(rows).table, 9)) == set(range(6))


def test_chips_with_an_error_are_left_out() -> None:
    rows = [chip(name) for name in "abcdef"] + [chip("broken", error="broken.tif is empty")]
    assert "broken" not in set(split_chips(inventory(rows), settings()).table["chip"])


@pytest.mark.parametrize(
    ("rows", "changes", "words"),
    [
        ([chip("a"), chip("b")], {}, "2 groups by place and date"),
        ([chip(name, tile="10TGS", date="2020-06-01") for name in "abcdef"], {}, "1 groups by place and date"),
        ([chip(name) for name in "abcdef"], {"test_share": 0.0}, "the test split of somewhere is empty: set data.test_share"),
        ([chip(name) for name in "abcdef"], {"validation_share": 0.0}, "the validation split of somewhere is empty"),
        ([chip(name, listed_split="test") for name in "abcdef"], {}, "split of somewhere is empty"),
        ([chip(name, positive_share=0.0) for name in "abcdef"], {}, "no training chip of somewhere has a pixel of class 1"),
        ([chip("a", error="is empty")], {}, "no chip of somewhere is without an error"),
    ],
)
def test_splits_that_cannot_be_used_are_refused_in_one_line(rows: list[dict[str, Any]], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SplitError) as error:
        split_chips(inventory(rows), settings(**changes))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_many_leaks_are_counted_not_all_listed() -> None:
    rows = [chip(f"{index}", tile="10TGS", date="2020-06-01") for index in range(40)]
    table = inventory(rows).table.assign(split=["train", "test"] * 20)
    leaks = check_leakage(table, 16)
    assert len(leaks) == 51
    assert leaks[-1] == "and 350 more pairs: one tile on near dates"


def test_real_files_are_split_by_where_they_lie(tmp_path: Path, write_chip: Any, burn_task: TaskConfig, data: DataConfig) -> None:
    for index in range(12):
        write_chip(tmp_path, f"chip{index:02d}", index, place=(index // 2 * 3, index % 2))
    write_chip(tmp_path, "copy", 0, place=(90, 90))
    splits = split_chips(build_inventory(tmp_path, burn_task, data), data)
    by_name = splits.table.set_index("chip")["split"]
    assert by_name["copy"] == by_name["chip00"]
    assert check_leakage(splits.table, data.neighbouring_days) == []
