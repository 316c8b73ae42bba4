"""What validation found: typed, and drawn as one page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from hls_foundry.chips.inventory import Inventory
from hls_foundry.errors import ValidationFailed


@dataclass(frozen=True)
class CheckResult:
    """One expectation of the suite. `level`: whether it judges single chips, which can be quarantined, or the data set as a whole."""

    name: str
    level: Literal["chip", "data set"]
    passed: bool
    column: str
    observed: str
    threshold: str
    chips: tuple[str, ...]
    advice: str


@dataclass(frozen=True, eq=False)
class ValidationReport:
    """`inventory`: the chips to go on with. `quarantined`: columns chip, reasons. `failure`: "" or one line, what is wrong and what to do.

    `docs_html`: Great Expectations' Data Docs with a summary in words, one page that loads nothing.
    """

    inventory: Inventory
    quarantined: pd.DataFrame
    checks: tuple[CheckResult, ...]
    failure: str
    docs_html: str

    @property
    def success(self) -> bool:
        """Whether the pipeline may go on (with `inventory`)."""
        return not self.failure

    def to_html(self) -> str:
        """The Data Docs page."""
        return self.docs_html

    def raise_for_failure(self, page: Path | None = None) -> None:
        """Raise ValidationFailed with the one line, naming `page`, where the Data Docs lie."""
        if self.failure:
            raise ValidationFailed(self.failure + (f"; see {page}" if page else ""))

    def write(self, page: Path) -> None:
        """Write the Data Docs page, atomically."""
        page.parent.mkdir(parents=True, exist_ok=True)
        partial = page.with_name(page.name + ".part")
        partial.write_text(self.docs_html, encoding="utf-8")
        partial.replace(page)
