"""Draws an inference test: what was asked in which format, how it agreed, and what was refused."""

from __future__ import annotations

from hls_foundry.endpoints.inference_test import InferenceTestReport
from hls_foundry.report import Section, facts, table
from hls_foundry.report import page as whole_page


def sections(report: InferenceTestReport) -> list[Section]:
    """The report's parts: figures, formats, refused requests, and problems where there are any."""
    formats = [
        {
            "request": result.request,
            "reply": result.reply,
            "requests": result.requests,
            "errors": result.errors,
            "agreement": "" if result.agreement is None else f"{result.agreement:.6f}",
            "median ms": "" if result.p50_ms is None else result.p50_ms,
        }
        for result in report.formats
        if result.requests
    ]
    refused = [
        {"bad request": refusal.name, "as documented": "not judged" if refusal.note else not refusal.problem, "problem": refusal.problem}
        for refusal in report.bad_requests
    ]
    notes = table([{"note": note} for note in report.notes()]) if report.notes() else ""
    body = facts(report.summary()) + table(formats) + (table(refused) if refused else "") + notes
    problems = [Section("Problems", table([{"problem": problem} for problem in report.problems()]))] if not report.passes() else []
    return [Section("Inference test", body), *problems]


def page(report: InferenceTestReport) -> str:
    """One HTML page that loads nothing."""
    return whole_page(
        "Inference test", "Every test chip over HTTP, held against the in-process prediction of the same bundle.", sections(report)
    )
