"""Runs the suite with Great Expectations: an ephemeral context, one pandas batch, one suite. No network, no files."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd

from hls_foundry.validation.suite import Check

SUITE = "chips"
HARMLESS = str.maketrans({"<": "‹", ">": "›", "&": "＆"})


@contextmanager
def great_expectations() -> Iterator[Any]:
    """The module, imported late (seconds) and with its analytics, its warnings and its progress bars off."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read at import
    package = logging.getLogger("great_expectations")
    before = {package: package.level}
    try:
        package.setLevel(logging.ERROR)  # the import alone logs two hundred lines where the level is INFO, as in a job on a cluster
        import great_expectations as gx

        for name in list(logging.root.manager.loggerDict):  # its modules log at levels of their own
            if name.startswith("great_expectations."):
                before[logging.getLogger(name)] = logging.getLogger(name).level
                logging.getLogger(name).setLevel(logging.ERROR)
        yield gx
    finally:
        for log, level in before.items():
            log.setLevel(level)


def run_suite(table: pd.DataFrame, checks: list[Check]) -> Any:
    """Validate the columns that the checks name; returns GX's ExpectationSuiteValidationResult, its results in the order of `checks`.

    `table` needs the column `chip`, unique: results name bad rows by it.
    """
    with great_expectations() as gx:
        from great_expectations.data_context.types.base import ProgressBarsConfig

        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        asset = context.data_sources.add_pandas("inventory").add_dataframe_asset(name="chips")
        batch = asset.add_batch_definition_whole_dataframe("all").get_batch(batch_parameters={"dataframe": _columns(table, checks)})
        suite = gx.ExpectationSuite(
            name=SUITE,
            expectations=[getattr(gx.expectations, check.expectation)(column=check.column, **check.parameters) for check in checks],
        )
        result = batch.validate(
            suite,
            result_format={
                "result_format": "COMPLETE",
                "unexpected_index_column_names": ["chip"],
                "partial_unexpected_count": 20,
                "return_unexpected_index_query": False,
            },
        )
    if len(result.results) != len(checks):
        raise RuntimeError(f"Great Expectations answered {len(result.results)} of {len(checks)} expectations")
    # The order of results is not promised; the column and the type of expectation are, and no two checks share both.
    found = {(one.expectation_config.kwargs["column"], one.expectation_config.type): one for one in result.results}
    result.results = [found[(check.column, _snake_case(check.expectation))] for check in checks]
    for one in result.results:
        one.result = {key: _plain(value) for key, value in one.result.items()}
    return result


def bad_chips(one: Any, chips: Iterable[str]) -> list[str]:
    """Those of `chips`, the names of the judged table, that GX's result of one column expectation calls bad."""
    bad = {entry["chip"] for entry in one.result.get("unexpected_index_list") or []}
    return [chip for chip in chips if chip.translate(HARMLESS) in bad]


def _columns(table: pd.DataFrame, checks: list[Check]) -> pd.DataFrame:
    """Only what is judged, without what would be markup on GX's page: its tables of rows do not escape."""
    columns = table[["chip", *dict.fromkeys(check.column for check in checks)]].reset_index(drop=True)
    for name in columns.columns[columns.dtypes.map(lambda dtype: not pd.api.types.is_numeric_dtype(dtype))]:
        columns[name] = [value.translate(HARMLESS) if isinstance(value, str) else value for value in columns[name]]
    return columns


def _plain(value: Any) -> Any:
    """numpy's numbers as Python's: GX's renderer cannot draw the former."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return value


def _snake_case(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
