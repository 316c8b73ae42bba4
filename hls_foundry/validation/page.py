"""Draws what validation found as a part of a run's report; the whole of it is the Data Docs page (docs.py)."""

from __future__ import annotations

from hls_foundry.report import Section, folded, note, table, tiles
from hls_foundry.validation.report import ValidationReport


def validation_sections(report: ValidationReport) -> list[Section]:
    """How many chips are valid, what failed, every check, and the quarantined chips with their reasons."""
    passed = sum(check.passed for check in report.checks)
    shown = {"valid chips": f"{len(report.inventory.table):,}", "quarantined": f"{len(report.quarantined):,}"}
    rows = [{"check": check.name, "passed": check.passed, "found": check.observed, "allowed": check.threshold} for check in report.checks]
    bad = [{"chip": row["chip"], "reasons": row["reasons"]} for row in report.quarantined.to_dict("records")]
    wrong = [{"check": check.name, "found": check.observed, "what to do": check.advice} for check in report.checks if not check.passed]
    parts = [tiles({**shown, "checks passed": f"{passed} of {len(report.checks)}"})]
    parts += [note(report.failure)] if report.failure else []
    parts += [table(wrong)] if wrong else []
    parts += [f"<h3>Quarantined chips</h3>{table(bad)}"] if bad else []
    return [Section("Data", *parts, folded(f"all {len(rows)} checks", table(rows)))]
