"""Validates an inventory: names the mistakes, judges every chip and the data set, and quarantines or fails as configured."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from hls_foundry.chips.bands import BANDS
from hls_foundry.config import DataConfig, TaskConfig, ValidationConfig
from hls_foundry.validation.band_order import NAMES, BandOrder, judge_band_order
from hls_foundry.validation.diagnosis import diagnose
from hls_foundry.validation.docs import render_page
from hls_foundry.validation.expectations import bad_chips, run_suite
from hls_foundry.validation.report import CheckResult, ValidationReport
from hls_foundry.validation.separability import measure_separability
from hls_foundry.validation.suite import Check, build_suite

if TYPE_CHECKING:
    from hls_foundry.chips.inventory import Inventory
    from hls_foundry.chips.splits import Splits

TYPICAL = {"cloud_share": 0.5, "nodata_share": 0.5, "positive_share": 0.6}
"""Chips with larger shares do not speak for the data set's reflectance: they are mostly cloud, empty, or water."""
LEAK = re.compile(r"(?P<one>.+) \((?:train|validation|test)\) and (?P<other>.+) \((?:train|validation|test)\): (?P<why>.+)")
SYSTEMATIC = 0.5  # share of chips from which a mistake is the pipeline's
SEPARABLE_CHIPS = 5  # fewer say nothing about the pairing of images and masks
INVERTED = 0.35  # median separability below which class 0 and 1 are swapped rather than the masks


def validate(
    inventory: Inventory,
    splits: Splits | None,
    task: TaskConfig,
    config: ValidationConfig,
    data: DataConfig,
    *,
    page: Path | None = None,
) -> ValidationReport:
    """Check, write the Data Docs to `page` where given, and go on or not.

    Raises ValidationFailed (one line) where a check of the whole data set fails, where on_failure is "fail" and any chip is bad,
    and where more than max_bad_share of the chips are. To keep the report of a failure, use `check` and raise_for_failure.
    """
    report = check(inventory, splits, task, config, data)
    if page:
        report.write(page)
    report.raise_for_failure(page)
    return report


def check(inventory: Inventory, splits: Splits | None, task: TaskConfig, config: ValidationConfig, data: DataConfig) -> ValidationReport:
    """Judge without raising: the report says in `failure` why the pipeline may not go on.

    `splits` (where they are made already) adds the check for leakage.
    """
    table, order = _judged_table(inventory, splits, task, config, data)
    checks = build_suite(task, config, split=splits is not None)
    outcome = run_suite(table, checks)
    results: list[CheckResult] = []
    reasons: dict[str, list[str]] = {}
    rows = {row["chip"]: row for row in table.to_dict("records")}
    for one, answer in zip(checks, outcome.results, strict=True):
        bad = bad_chips(answer, table["chip"]) if one.level == "chip" else []
        if one.name == "no duplicates":
            bad = [chip for chip in bad if rows[chip]["duplicate_of"]]  # GX calls the original of a copy a duplicate, too
        for chip in bad:
            reasons.setdefault(chip, []).append(one.reason(rows[chip]))
        results.append(_result(one, answer, bad, table, order))
    quarantined = pd.DataFrame(
        [(chip, "; ".join(reasons[chip])) for chip in table["chip"] if chip in reasons], columns=["chip", "reasons"], dtype="object"
    )
    failure = _failure(results, checks, quarantined, len(table), config)
    valid = replace(inventory, table=inventory.table[~inventory.table["chip"].isin(reasons)].reset_index(drop=True))
    docs = render_page(task, config, results, quarantined, failure, len(table), outcome)
    return ValidationReport(valid, quarantined, tuple(results), failure, docs)


def _judged_table(
    inventory: Inventory, splits: Splits | None, task: TaskConfig, config: ValidationConfig, data: DataConfig
) -> tuple[pd.DataFrame, BandOrder]:
    """The inventory with everything that the suite judges, in columns; and the order of the bands."""
    table = diagnose(inventory.table, data, config)
    table["duplicate_of"] = _duplicates(table)
    typical = table[table["usable"] & np.logical_and.reduce([~(table[name] > share) for name, share in TYPICAL.items()])]
    for band in BANDS:
        table[f"{band}_level"] = typical[f"{band}_mean"]  # NaN elsewhere
    order = judge_band_order(typical, task)
    table["band_order"] = ", ".join(NAMES[band] for band in order.order) if order.problem else ", ".join(BANDS)
    table["separability"] = np.nan
    if config.min_separability:
        separability = measure_separability(inventory.root, table, task, data)
        if separability.notna().sum() >= SEPARABLE_CHIPS:
            table["separability"] = separability
    table["leakage"] = _leakage(splits, data)
    return table, order


def _duplicates(table: pd.DataFrame) -> pd.Series:
    """The chip of which each one is a copy ("" = none). The first of equal pairs is kept; copies with other masks are all in doubt."""
    copy_of: dict[str, str] = {}
    for _, same in table[table["digest"].notna()].groupby("digest", sort=False):
        names = same["chip"].tolist()
        if len(names) > 1 and same["mask_digest"].nunique() == 1:
            copy_of |= dict.fromkeys(names[1:], names[0])
        elif len(names) > 1:
            copy_of |= {name: f"{names[0] if name != names[0] else names[1]}, with another mask" for name in names}
    return pd.Series([copy_of.get(name, "") for name in table["chip"]], index=table.index, dtype="object")


def _leakage(splits: Splits | None, data: DataConfig) -> str:
    """ "none", or the pairs of chips that the splits should not have parted.

    A data set's own lists are followed, as published results do, also where they part neighbours: of those pairs only equal pixels
    count here.
    """
    if splits is None:
        return "none"
    from hls_foundry.chips.splits import check_leakage

    table = splits.table
    lines = check_leakage(table, data.neighbouring_days)
    listed = set(table.loc[table["listed_split"] != "", "chip"])
    leaks = []
    for line in lines:
        pair = LEAK.match(line)
        if pair and (pair["why"] == "equal pixels" or not {pair["one"], pair["other"]} <= listed):
            leaks.append(line)
    return leaks[0] + (f" (and {len(leaks) - 1} more)" if len(leaks) > 1 else "") if leaks else "none"


def _result(one: Check, answer: Any, bad: list[str], table: pd.DataFrame, order: BandOrder) -> CheckResult:
    passed, advice = bool(answer.success), one.advice
    if one.level == "chip":
        passed = not bad
        observed = f"{len(bad)} of {len(table)} chips" if bad else "all chips"
        return CheckResult(one.name, one.level, passed, one.column, observed, one.threshold, tuple(bad), advice)
    value = answer.result.get("observed_value")
    if value is None:  # nothing to judge by is no failure
        return CheckResult(one.name, one.level, True, one.column, "not judged: too few chips", one.threshold, (), advice)
    observed = f"{value:.3f}" if isinstance(value, float) else ", ".join(str(entry) for entry in value)
    if one.column == "has_positive":
        observed = f"{100 * value:.0f} % of the chips"
    if one.column == "band_order" and not passed:
        observed, advice = f"wrong band order: {order.problem}", f"{order.mend}; {advice}"
    if one.column == "separability" and not passed:
        what = "the labels look inverted (0 and 1 swapped)" if value < INVERTED else "image and mask look to be of different places"
        observed = f"{what}: median {value:.2f}"
    return CheckResult(one.name, one.level, passed, one.column, observed, one.threshold, (), advice)


def _failure(
    results: Sequence[CheckResult], checks: Sequence[Check], quarantined: pd.DataFrame, total: int, config: ValidationConfig
) -> str:
    """ "" or the one line: what is wrong with the data set, else how many chips are bad and the top reasons."""
    problems = []
    for result, one in zip(results, checks, strict=True):
        if result.passed:
            continue
        if result.level == "data set":
            problems.append(f"{result.name}: {result.observed} (expected {result.threshold}): {result.advice}")
        elif one.systematic and len(result.chips) >= max(SYSTEMATIC * total, 1):
            problems.append(f"{result.name}: {len(result.chips)} of {total} chips, such as {_first_reason(quarantined, result)}")
    if problems:
        # The first is the cause or the nearest to it: the suite is ordered so.
        return f"validation of {total} chips failed: {problems[0]}" + (f" (and {len(problems) - 1} more)" if problems[1:] else "")
    tolerated = config.on_failure == "quarantine" and len(quarantined) <= config.max_bad_share * total and len(quarantined) < total
    if quarantined.empty or tolerated:
        return ""
    counts = Counter({result.name: len(result.chips) for result in results if result.chips})
    top = ", ".join(f"{name} ({count})" for name, count in counts.most_common(3))
    allowed = f"at most {100 * config.max_bad_share:g} % may be" if config.on_failure == "quarantine" else "none may be"
    first = f"{quarantined['chip'].iloc[0]}: {quarantined['reasons'].iloc[0]}"
    return f"validation failed: {len(quarantined)} of {total} chips are bad, {allowed}; failed checks: {top}; first: {first}"


def _first_reason(quarantined: pd.DataFrame, result: CheckResult) -> str:
    reasons: str = quarantined.loc[quarantined["chip"] == result.chips[0], "reasons"].iloc[0]
    return f"{result.chips[0]}: {reasons}"
