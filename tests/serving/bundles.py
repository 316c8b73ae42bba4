"""A tiny model bundle with random weights for the tests of serving and endpoints."""

from __future__ import annotations

from pathlib import Path

import torch

from hls_foundry.chips.bands import BANDS
from hls_foundry.models.bundle import BundleManifest, save_bundle
from hls_foundry.models.segmenter import segmenter_from_architecture
from tests.serving.scenes import reflectance

MEAN = (0.04, 0.07, 0.06, 0.3, 0.2, 0.12)
STD = (0.02, 0.03, 0.03, 0.12, 0.08, 0.05)
ARCHITECTURE = {
    "variant": "v2_tiny_tl",
    "classes": 2,
    "encoder": {"embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": 16, "image_size": 64, "num_frames": 1},
    "head": {"name": "fcn", "channels": 16, "blocks": (2,)},
}


def tiny_bundle(folder: Path, seed: int = 0) -> Path:
    """Save a model of some 100,000 weights whose predictions on `reflectance` hold both classes, sure and unsure."""
    torch.manual_seed(seed)
    model = segmenter_from_architecture(ARCHITECTURE).eval()
    pixels = torch.from_numpy(reflectance(224)).nan_to_num()
    x = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.no_grad():
        for part in model.head.modules():
            if isinstance(weight := getattr(part, "weight", None), torch.Tensor) and weight.ndim == 4:
                weight.copy_(weight.mean((2, 3), keepdim=True).expand_as(weight))  # patches, not noise: masks have regions
    last = [part for part in model.head.modules() if getattr(part, "weight", None) is not None and len(part.weight) == 2][-1]
    with torch.no_grad():
        logits = model(x[None])[0]
        difference = logits[1] - logits[0]
        gain = 2.0 / difference.std()
        last.weight *= gain
        last.bias *= gain
        last.bias[1] -= (difference.median() * gain).item()
    manifest = BundleManifest(
        task="burn_scars",
        title="Burn scars",
        classes=("background", "burn scar"),
        bands=BANDS,
        scale=0.0001,
        mean=MEAN,
        std=STD,
        architecture=model.architecture(),
        tile=128,
        overlap=0.25,
        batch_size=4,
    )
    save_bundle(folder, model, manifest)
    return folder
