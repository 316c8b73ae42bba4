"""The page of a task's model in the dashboard: versions, stages, metrics, archive, endpoint and model card.

ZenML's open-source dashboard has no page for models. This one is drawn from its store at each request, inside its server.
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hls_foundry.errors import FoundryError
from hls_foundry.home import foundry_home
from hls_foundry.models.card_page import card_sections
from hls_foundry.report import Section, columns, facts, note, page, table, text, tiles

CARD = "README.md"
RUNS = {"published_by": "trained and published by", "placed_by": "brought to S3 by", "tested_by": "deployed and tested by"}


@dataclass(frozen=True)
class Version:
    """One version as ZenML has it. `runs`: the ids of the runs in its lineage, by name."""

    number: str
    stage: str
    created: datetime
    metadata: Mapping[str, Any]
    runs: Mapping[str, str]


def draw(name: str) -> str | None:
    """The page of model `name`, for "" that of all models; None where there is no such model. Runs in ZenML's server."""
    from zenml.models import ModelFilter
    from zenml.zen_server.utils import zen_store

    models = {model.name: model for model in zen_store().list_models(ModelFilter(size=500)).items}
    if not name:
        links = "".join(f'<p><a href="/hls/models/{text(model)}">{text(model)}</a></p>' for model in sorted(models))
        return page("Models", "One a task.", [Section("Models", links or note("There are none yet: run.py makes the first."))])
    return draw_versions(name, _versions(models[name].id)) if name in models else None


def draw_versions(name: str, versions: Sequence[Version]) -> str:
    """The page of model `name`; `versions`: the latest first."""
    title = f"{name.replace('_', ' ').capitalize()}: the model and its versions"
    current = next((version for version in versions if version.stage == "production"), None)
    sections = [*(_production(current) if current else [Section("In production", note("No version is in production."))])]
    decisions = {f"version {version.number}": version.metadata.get("promotion", "not decided yet") for version in versions}
    sections.append(Section("All versions", table([_row(version) for version in versions]), facts(decisions)))
    if current:
        sections += [*_endpoint(current), *_lineage(current), *_card(current)]
    return page(title, f"{len(versions)} version{'' if len(versions) == 1 else 's'}.", sections, contents=True)


def _versions(model: Any) -> list[Version]:
    from zenml.models import ModelVersionFilter
    from zenml.zen_server.utils import zen_store

    found = zen_store().list_model_versions(ModelVersionFilter(model=model, sort_by="desc:number", size=500), hydrate=True)
    return [
        Version(one.name, one.stage or "none", one.created, one.run_metadata, _run_ids(one.run_metadata) if one.stage else {})
        for one in found.items
    ]


def _run_ids(metadata: Mapping[str, Any]) -> dict[str, str]:
    from zenml.models import PipelineRunFilter
    from zenml.zen_server.utils import zen_store

    names = {name for key in RUNS if (name := _run_name(metadata, key))}
    found = [run for name in names for run in zen_store().list_runs(PipelineRunFilter(name=name)).items]
    return {run.name: str(run.id) for run in found}


def _run_name(metadata: Mapping[str, Any], key: str) -> str | None:
    name = metadata.get("inference_test", {}).get("run") if key == "tested_by" else metadata.get(key)
    return None if name is None else str(name)


def _production(version: Version) -> list[Section]:
    known = version.metadata
    test, baseline = known.get("test", {}), known.get("baseline", {})
    shown = {"version": version.number} | {
        label: f"{test[key]:.3f}" for key, label in (("iou", "test IoU"), ("miou", "mean IoU"), ("f1", "F1")) if key in test
    }
    if baseline:
        shown[f"{baseline['name']} baseline, IoU"] = f"{baseline['iou']:.3f}"
    rows = {
        "why it was promoted": known.get("promotion"),
        "archive": known.get("uri"),
        "SHA-256 of the archive": known.get("sha256"),
        "copy for SageMaker": known.get("s3_uri"),
        "SHA-256 of the weights": known.get("weights_sha256"),
        "pretrained encoder": known.get("pretrained"),
        "chips": known.get("data", {}).get("source"),
        "fingerprint of the chips": known.get("data_fingerprint"),
        "code": known.get("code"),
    }
    untrained = [note("The encoder started from random weights.")] if known.get("pretrained") is False else []
    return [Section("In production", tiles(shown), *untrained, facts({name: value for name, value in rows.items() if value is not None}))]


def _row(version: Version) -> dict[str, Any]:
    known = version.metadata
    test = known.get("test", {})
    return {
        "version": version.number,
        "stage": version.stage,
        "made (UTC)": f"{version.created:%Y-%m-%d %H:%M}",
        **{label: test.get(key) for key, label in (("iou", "test IoU"), ("miou", "mean IoU"), ("f1", "F1"))},
        "baseline IoU": known.get("baseline", {}).get("iou"),
        "published": "uri" in known,
    }


def _endpoint(version: Version) -> list[Section]:
    known, tested = version.metadata.get("endpoint"), version.metadata.get("inference_test")
    if not known:
        return [Section("Endpoint", note("It has not been deployed yet: run.py --pipeline deploy does that."))]
    rows = {"state": endpoint_state(known), **known}
    return [Section("Endpoint", columns(facts(rows), f"<h3>Its inference test</h3>{facts(tested)}" if tested else ""))]


def endpoint_state(known: Mapping[str, Any]) -> str:
    """How an endpoint on this machine is now; of one on SageMaker, how it was when it was tested."""
    from hls_foundry.endpoints.local import LocalEndpoints

    if known["target"] == "sagemaker":
        return "answered when it was tested; now: run.py endpoints --stack aws"
    try:
        found = LocalEndpoints(foundry_home() / "endpoints").get(known["name"])
    except FoundryError:
        return "deleted"
    return found.state if found.url == known["url"] else f"{found.state}, at {found.url} by now"


def _lineage(version: Version) -> list[Section]:
    rows = []
    for key, words in RUNS.items():
        if name := _run_name(version.metadata, key):
            run = version.runs.get(name)
            link = f'<a href="/projects/default/runs/{text(run)}">{text(name)}</a>' if run else text(name)
            rows.append(f"<tr><th>{words}</th><td>{link}</td></tr>")
    return [Section("Runs", f'<div class="wide"><table><tbody>{"".join(rows)}</tbody></table></div>')] if rows else []


def _card(version: Version) -> list[Section]:
    """The model card inside the archive, where that lies on this machine."""
    archive = Path(str(version.metadata.get("uri", "")))
    try:
        with tarfile.open(archive) as packed:
            member = packed.extractfile(CARD)
            return card_sections(member.read().decode("utf-8")) if member else []
    except (OSError, KeyError, tarfile.TarError, UnicodeDecodeError):
        return [Section("Model card", note(f"It is {CARD} inside the archive, which is not on this machine."))]
