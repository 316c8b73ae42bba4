"""The bundle's README.md: what a person should know before using the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hls_foundry.models.bundle import BundleManifest

SCORES = {"miou": "mean IoU", "iou": "IoU of class 1", "f1": "F1", "precision": "precision", "recall": "recall", "accuracy": "accuracy"}


def render_model_card(manifest: BundleManifest) -> str:
    """Markdown with a YAML head as the Hugging Face hub reads it."""
    architecture = manifest.architecture
    variant, head = architecture.get("variant", "unknown"), architecture.get("head", {}).get("name", "unknown")
    parts = [
        "---",
        "library_name: hls-foundry",
        "pipeline_tag: image-segmentation",
        "tags: [earth-observation, hls, prithvi]",
        f"pretrained: {str(manifest.pretrained).lower()}",
        "---",
        "",
        f"# {manifest.title}: Prithvi {variant} with {head} head",
        "",
        f"Maps **{manifest.classes[1]}** (class 1) against {manifest.classes[0]} (class 0) in six-band surface reflectance "
        f"({', '.join(manifest.bands)}) of Harmonized Landsat Sentinel-2 or a sensor like it. Made {manifest.created}.",
        "",
        *_origin(manifest),
        "",
        *_metrics(manifest.metrics),
        "",
        "## Input",
        "",
        f"- Reflectance 0–1; integer files × {manifest.scale:g}. Normalised per band with",
        f"  mean {_numbers(manifest.mean)} and standard deviation {_numbers(manifest.std)}.",
        f"- Any size from 64 pixels; predicted in tiles of {manifest.tile} pixels that overlap by {manifest.overlap:.0%}.",
        "- Pixels without data in any of the six bands stay without data.",
        "",
        "## Intended use and limits",
        "",
        f"- For mapping {manifest.classes[1]} in scenes like those of its training chips: same sensors, resolution, regions and seasons.",
        "  Elsewhere, measure it on labelled chips of the new place first.",
        "- Clouds, their shadows, smoke and snow are not masked; mask them before, or treat what lies under them as unknown.",
        "- Wrong scale, band order or top-of-atmosphere instead of surface reflectance gives wrong maps without an error.",
        "- Probabilities are not calibrated. Do not use a map alone where people's safety depends on it.",
        "",
        "## Training data and lineage",
        "",
        *_lineage(manifest.lineage),
        "",
    ]
    return "\n".join(parts)


def _origin(manifest: BundleManifest) -> list[str]:
    if not manifest.pretrained:
        return [
            "`pretrained: false`: the encoder was trained from random weights on this task's chips alone. It has the architecture of "
            "Prithvi, but none of what Prithvi learned from a decade of imagery; expect it to generalise less."
        ]
    digest = f" (SHA-256 `{manifest.weights_sha256}`)" if manifest.weights_sha256 else ""
    return [f"`pretrained: true`: fine-tuned from {manifest.weights}{digest}."]


def _metrics(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = ["## Metrics", ""]
    splits = [split for split in metrics if split != "baseline"]
    columns = [name for name in SCORES if any(name in metrics[split] for split in splits)]
    if not columns:
        return [*lines, "Not measured yet."]
    lines += ["| chips | " + " | ".join(SCORES[name] for name in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {split} | " + " | ".join(_figure(metrics[split].get(name)) for name in columns) + " |" for split in splits]
    baseline, test = metrics.get("baseline", {}), metrics.get("test", {})
    if isinstance(baseline.get("iou"), int | float) and isinstance(test.get("iou"), int | float):
        gain = float(test["iou"]) - float(baseline["iou"])
        name = baseline.get("name", "the spectral index")
        lines += [
            "",
            f"The index a scientist tries first, {name} with the threshold that is best on the training chips, reaches IoU "
            f"{baseline['iou']:.4f} on the same test chips: this model is {abs(gain):.4f} {'above' if gain >= 0 else 'below'} it.",
        ]
    if "test" not in metrics:
        lines += ["", "Not measured on test chips yet."]
    return lines


def _lineage(lineage: Mapping[str, Any]) -> list[str]:
    if not lineage:
        return ["Not recorded."]
    return ["| | |", "|---|---|", *(f"| {key.replace('_', ' ')} | {_cell(value)} |" for key, value in lineage.items())]


def _cell(value: Any) -> str:
    return " ".join(str(value).replace("|", "\\|").split())


def _figure(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "–"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
