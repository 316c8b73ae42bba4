"""The encoder against the oracle: features of the reference implementation for the same weights and input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hls_foundry.models import prithvi
from hls_foundry.models.prithvi import Attention, PrithviEncoder, position_embedding, resize_position_embedding
from hls_foundry.models.variants import VARIANTS

GOLDEN = Path(__file__).parent / "golden"
SMALL = {"embed_dim": 48, "depth": 3, "num_heads": 3}
CASES = {
    "single_frame": ("single_frame", {"image_size": 64}),
    "single_frame_resized": ("single_frame", {"image_size": 64}),
    "three_frames_tl": ("three_frames_tl", {"image_size": 64, "num_frames": 3, "coords_encoding": ("time", "location")}),
    "three_frames_no_coords": ("three_frames_tl", {"image_size": 64, "num_frames": 3, "coords_encoding": ("time", "location")}),
    "patch14": ("patch14", {"image_size": 56, "patch_size": (1, 14, 14)}),
}
PARAMETERS = {"v1_100": 86, "v2_tiny_tl": 5.6, "v2_100_tl": 86, "v2_300": 303, "v2_300_tl": 303, "v2_600": 630, "v2_600_tl": 630}


def golden(case: str) -> tuple[PrithviEncoder, dict[str, torch.Tensor]]:
    weights, options = CASES[case]
    encoder = PrithviEncoder(**SMALL, **options).eval()
    encoder.load_state_dict(load_file(GOLDEN / f"{weights}.safetensors"), strict=True)
    with np.load(GOLDEN / "golden.npz") as arrays:
        return encoder, {name.split("/")[1]: torch.from_numpy(arrays[name]) for name in arrays.files if name.startswith(f"{case}/")}


@pytest.mark.parametrize("case", CASES)
def test_features_of_every_block_equal_the_oracle(case: str) -> None:
    encoder, arrays = golden(case)
    features = encoder.forward_features(arrays["input"], arrays.get("temporal_coords"), arrays.get("location_coords"))
    assert len(features) == 3
    for i, feature in enumerate(features):
        torch.testing.assert_close(feature.detach(), arrays[f"features_{i}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_bf16_takes_other_paths_to_the_same_features(case: str) -> None:
    encoder, arrays = golden(case)
    with torch.autocast("cpu", torch.bfloat16):
        feature = encoder(arrays["input"], arrays.get("temporal_coords"), arrays.get("location_coords"))
    expected = arrays["features_2"]
    assert (feature.float() - expected).abs().mean() < 0.02 * expected.abs().mean()


def test_attention_multiplied_out_equals_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    attention = Attention(96, 3).bfloat16()
    x = torch.randn(2, 50, 96, dtype=torch.bfloat16)
    products = attention(x).float()
    monkeypatch.setattr(prithvi, "ATTENTION_BY_MATRICES_BELOW", 0)
    fused = attention(x).float()
    assert (products - fused).abs().max() < 0.01


@pytest.mark.parametrize("case", ["single_frame", "three_frames_tl", "patch14"])
def test_position_embedding_is_initialised_as_published(case: str) -> None:
    weights, options = CASES[case]
    stored = load_file(GOLDEN / f"{weights}.safetensors")["pos_embed"]
    torch.testing.assert_close(PrithviEncoder(**SMALL, **options).pos_embed, stored, rtol=0, atol=1e-6)


def test_other_number_of_frames_starts_over_from_sines() -> None:
    three = position_embedding(48, (3, 4, 4))
    assert torch.equal(resize_position_embedding(three, (3, 4, 4), (1, 4, 4)), position_embedding(48, (1, 4, 4)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_have_the_published_sizes(variant: str) -> None:
    v = VARIANTS[variant]
    with torch.device("meta"):
        encoder = PrithviEncoder(
            v.embed_dim, v.depth, v.num_heads, (1, v.patch_size, v.patch_size), num_frames=v.num_frames, coords_encoding=v.coords_encoding
        )
    millions = sum(p.numel() for p in encoder.parameters()) / 1e6
    assert millions == pytest.approx(PARAMETERS[variant], rel=0.01)
    assert encoder.pos_embed.shape[1] == 1 + v.num_frames * (224 // v.patch_size) ** 2
    assert ("temporal_embed_enc.scale" in encoder.state_dict()) == variant.endswith("_tl")


def test_image_that_is_no_multiple_of_the_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of the patch"):
        PrithviEncoder(**SMALL, image_size=64).forward_features(torch.zeros(1, 6, 1, 60, 64))


def test_gradient_checkpointing_changes_no_gradient() -> None:
    encoder, arrays = golden("single_frame")
    encoder.train()
    gradients = []
    for checkpointing in (False, True):
        encoder.gradient_checkpointing = checkpointing
        encoder.zero_grad()
        encoder(arrays["input"]).square().mean().backward()
        gradients.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(encoder.parameters()))
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_drop_path_drops_whole_samples_in_training_only() -> None:
    torch.manual_seed(0)
    encoder = PrithviEncoder(**SMALL, image_size=32, drop_path=0.9)
    x = torch.randn(1, 6, 1, 32, 32)
    assert not torch.equal(encoder(x), encoder(x))
    encoder.eval()
    assert torch.equal(encoder(x), encoder(x))
    assert [block.drop_path.share for block in encoder.blocks] == [0.0, 0.45, 0.9]
