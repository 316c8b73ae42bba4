"""Great Expectations' Data Docs as one page that opens offline.

GX's own page loads Bootstrap, jQuery, Vega and a logo from five hosts. Its renderer and its templates for sections, tables and
values are used as they are; only the page around them is ours: a summary in words, and a style sheet instead of the downloads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from hls_foundry.config import TaskConfig, ValidationConfig
from hls_foundry.validation.expectations import great_expectations
from hls_foundry.validation.report import CheckResult

MAX_QUARANTINED = 500  # rows of the table on the page; the report holds all
MAX_NAMED = 8  # chips named beside a failed check

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}: data validation</title><link rel="icon" href="data:,"><style>{{ style | safe }}</style></head><body>
<header class="{{ 'failed' if failure else 'passed' }}">
<h1>{{ title }}: {{ 'validation failed' if failure else 'validation passed' }}</h1>
<p>{{ total }} chips, {{ total - quarantined | length }} valid, {{ quarantined | length }} {{ 'bad' if failure else 'quarantined' }};
{{ passed }} of {{ checks | length }} checks passed. {{ rule }}</p>
{% if failure %}<p class="failure">{{ failure }}</p>{% endif %}
</header>
{% if failed %}<h2>What failed, and what to do</h2>
<div class="wide"><table><thead><tr><th>check</th><th>found</th><th>allowed</th><th>chips</th><th>what to do</th></tr></thead><tbody>
{% for check in failed %}<tr><td>{{ check.name }}</td><td>{{ check.observed }}</td><td>{{ check.threshold }}</td>
<td class="chips">{% if check.level == 'data set' %}the data set{% else %}{{ check.chips[:named] | join(', ') }}
{%- if check.chips | length > named %} and {{ check.chips | length - named }} more{% endif %}{% endif %}</td>
<td>{{ check.advice }}</td></tr>
{% endfor %}</tbody></table></div>{% endif %}
{% if quarantined %}<h2>{{ 'Bad' if failure else 'Quarantined' }} chips</h2>
<div class="scroll"><table><thead><tr><th>chip</th><th>reasons</th></tr></thead><tbody>
{% for chip, reasons in quarantined[:most] %}<tr><td>{{ chip }}</td><td>{{ reasons }}</td></tr>{% endfor %}</tbody></table></div>
{% if quarantined | length > most %}<p>and {{ quarantined | length - most }} more</p>{% endif %}{% endif %}
<h2>All checks</h2>
<div class="wide"><table><thead><tr><th></th><th>check</th><th>of</th><th>found</th><th>allowed</th><th>column</th></tr></thead><tbody>
{% for check in checks %}<tr><td class="{{ 'good' if check.passed else 'bad' }}">{{ '✔' if check.passed else '✘' }}</td>
<td>{{ check.name }}</td><td class="level">{{ check.level }}</td><td>{{ check.observed }}</td><td>{{ check.threshold }}</td>
<td><code>{{ check.column }}</code></td></tr>
{% endfor %}</tbody></table></div>
<h2>Great Expectations Data Docs</h2>
<div class="ge">{% for section in sections %}{% set section_loop = loop %}{% include 'section.j2' %}{% endfor %}</div>
</body></html>"""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1f2328; --faint: #5b6570; --link: #0a58ca;
  --line: #dde1e6; --soft: #f4f6f8; --good: #1a7f37; --bad: #b42318; --alarm: #fbdbd7 }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15181c; --ink: #e6e9ec; --faint: #9aa5b1; --link: #6cb2f5;
    --line: #3a424b; --soft: #22272d; --good: #4cc26a; --bad: #ff8a7a; --alarm: #4d221d }
}
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1200px; margin: 1.5rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem }
h4 { font-size: 1rem } h5 { font-size: .95rem; margin: 0 }
header { border-left: 6px solid var(--good); background: var(--soft); padding: .8rem 1rem } header.failed { border-color: var(--bad) }
header p { margin: .3rem 0 0 } .failure { color: var(--bad); font-weight: 600; overflow-wrap: anywhere }
table { border-collapse: collapse; width: 100%; margin: 0 } thead th { background: var(--soft) }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem; border-bottom: 1px solid var(--line) }
.chips, .scroll td, .ge td { overflow-wrap: anywhere }
code { font-size: .85em; overflow-wrap: normal } td.level { white-space: nowrap } .good { color: var(--good) } .bad { color: var(--bad) }
.wide { overflow-x: auto } .scroll { max-height: 26rem; overflow: auto; border: 1px solid var(--line) }
.scroll thead th { position: sticky; top: 0 }
.ge { font-size: .9rem } .ge [hidden] { display: none }
.ge-section { border: 1px solid var(--line); margin: 0 0 .8rem } .ge-section .alert { background: var(--soft); padding: .4rem .7rem }
.ge .show-scrollbars { max-height: 16rem; overflow: auto }
.badge { background: var(--soft); border-radius: .3rem; padding: 0 .35rem } .badge-danger { background: var(--alarm); color: var(--bad) }
.text-success { color: var(--good) } .text-danger { color: var(--bad) } .text-muted { color: var(--faint) }
.text-center { text-align: center }
.fas { font-style: normal } .fa-check-circle::before { content: "✔" } .fa-times::before { content: "✘" }
.fa-exclamation-triangle::before { content: "!" } .collapse { display: none } .collapse:target { display: block }
.ge .mb-2 p, .ge p { margin: .3rem 0 } .ge a { color: var(--link) } .ge img { display: none } .row > div { padding: 0 .4rem }
"""


def render_page(
    task: TaskConfig,
    config: ValidationConfig,
    checks: Sequence[CheckResult],
    quarantined: pd.DataFrame,
    failure: str,
    total: int,
    outcome: Any,
) -> str:
    """The page: `checks`, `quarantined` (chip, reasons) and `failure` in words, then GX's rendering of its result `outcome`."""
    with great_expectations():
        from great_expectations.render.renderer import ValidationResultsPageRenderer
        from great_expectations.render.view import DefaultJinjaPageView

        document = ValidationResultsPageRenderer(run_info_at_end=True).render(outcome).to_json_dict()
        template = DefaultJinjaPageView().env.from_string(PAGE)
        rule = (
            f"Bad chips are quarantined while at most {100 * config.max_bad_share:g} % are bad."
            if config.on_failure == "quarantine"
            else "Any bad chip stops the pipeline."
        )
        page = template.render(
            document,
            title=task.title,
            style=STYLE,
            failure=failure,
            total=total,
            checks=checks,
            failed=[check for check in checks if not check.passed],
            passed=sum(check.passed for check in checks),
            quarantined=list(quarantined.itertuples(index=False, name=None)),
            rule=rule,
            most=MAX_QUARANTINED,
            named=MAX_NAMED,
        )
    # The link to the suite's own page, which does not exist here.
    return re.sub(r'<a href="(?:\.\./)+[^"]*"\s*>(.*?)</a>', r"\1", page)
