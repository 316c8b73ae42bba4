"""What trains, at which rate, and that LoRA's merged weights compute the same."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch

from hls_foundry.config import ModelConfig, TrainingConfig
from hls_foundry.errors import ConfigError
from hls_foundry.models.segmenter import Segmenter, build_segmenter
from hls_foundry.models.tuning import layer_of, merged_state, parameter_groups, prepare_tuning


def config(**changes: Any) -> ModelConfig:
    return ModelConfig(**{"variant": "v2_tiny_tl", "head_channels": 16, "image_size": 64, "dropout": 0.0, **changes})


def tuned(**changes: Any) -> Segmenter:
    torch.manual_seed(0)
    return prepare_tuning(build_segmenter(config(**changes)), config(**changes))


def trained(model: Segmenter) -> set[str]:
    """First parts of the encoder's trainable parameters."""
    names = [name for name, p in model.encoder.named_parameters() if p.requires_grad]
    return {".".join(name.split(".")[:2]) if name.startswith("blocks") else name.split(".")[0] for name in names}


def test_full_tuning_trains_all_but_unused_scales() -> None:
    assert trained(tuned()) == {"cls_token", "patch_embed", "norm", *(f"blocks.{i}" for i in range(12))}


def test_frozen_encoder_leaves_the_head() -> None:
    model = tuned(tune="frozen")
    assert trained(model) == set()
    assert model.parameter_count(trainable=True) == sum(p.numel() for p in model.head.parameters())


def test_last_blocks_train_with_the_final_norm() -> None:
    assert trained(tuned(tune="last_blocks", last_blocks=2)) == {"blocks.10", "blocks.11", "norm"}


def test_more_last_blocks_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match="v2_tiny_tl has 12 blocks"):
        tuned(tune="last_blocks", last_blocks=13)


def test_fresh_patch_embedding_trains_in_every_mode() -> None:
    assert trained(tuned(tune="frozen", patch_size=8)) == {"patch_embed"}
    assert "patch_embed" in trained(tuned(tune="lora", patch_size=8))
    assert trained(tuned(tune="frozen", patch_size=16)) == set()


def test_lora_trains_a_small_share_and_starts_as_the_model_was() -> None:
    plain, model = tuned().eval(), tuned(tune="lora", lora_rank=4).eval()
    assert all("lora_" in name for name, p in model.encoder.named_parameters() if p.requires_grad)
    in_encoder = sum(p.numel() for p in model.encoder.parameters() if p.requires_grad)
    assert 0 < in_encoder < 0.05 * sum(p.numel() for p in model.encoder.parameters())
    x = torch.randn(1, 6, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x))


def test_merged_lora_computes_the_same_from_plain_keys() -> None:
    model = tuned(tune="lora", lora_rank=4)
    x = torch.randn(2, 6, 64, 64)
    optimizer = torch.optim.AdamW(parameter_groups(model, TrainingConfig(learning_rate=0.01)))
    for _ in range(2):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    state = merged_state(model)
    plain = build_segmenter(config())
    assert state.keys() == plain.state_dict().keys()
    plain.load_state_dict(state, strict=True)
    changed = (plain.encoder.blocks[0].attn.qkv.weight - tuned().encoder.blocks[0].attn.qkv.weight).abs().max()
    assert changed > 1e-4
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(x), model.eval()(x), rtol=0, atol=1e-5)
    assert any("lora_A" in name for name in model.state_dict())  # merging did not end the training


def test_lora_without_peft_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_peft(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "peft":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_peft)
    with pytest.raises(ConfigError, match=r"pip install 'hls-foundry\[lora\]'"):
        tuned(tune="lora")


def test_layers_count_from_the_embedding_to_the_head() -> None:
    names = ["encoder.cls_token", "encoder.patch_embed.proj.weight", "encoder.blocks.0.norm1.weight", "encoder.blocks.11.mlp.fc2.bias"]
    assert [layer_of(name, 12) for name in [*names, "encoder.norm.weight", "head.conv.weight", "auxiliary.norm.bias"]] == [
        0,
        0,
        1,
        12,
        13,
        13,
        13,
    ]


def test_learning_rate_decays_layer_by_layer() -> None:
    model = tuned(auxiliary_weight=0.2)
    groups = parameter_groups(model, TrainingConfig(learning_rate=1e-3, layer_decay=0.9, weight_decay=0.05))
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == sum(1 for p in model.parameters() if p.requires_grad)
    assert rates[id(model.head.classifier.weight)] == pytest.approx(1e-3)
    assert rates[id(model.encoder.blocks[11].mlp.fc2.weight)] == pytest.approx(0.9e-3)
    assert rates[id(model.encoder.blocks[0].mlp.fc2.weight)] == pytest.approx(1e-3 * 0.9**12)
    assert rates[id(model.encoder.patch_embed.proj.weight)] == pytest.approx(1e-3 * 0.9**13)


def test_biases_norms_and_the_class_token_do_not_decay() -> None:
    model = tuned()
    groups = parameter_groups(model, TrainingConfig(weight_decay=0.05))
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert (
        decay[id(model.encoder.blocks[3].norm1.weight)] == decay[id(model.head.neck[0].bias)] == decay[id(model.encoder.cls_token)] == 0.0
    )
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            free = name.endswith("cls_token") or parameter.ndim == 1
            assert decay[id(parameter)] == (0.0 if free else 0.05), name


def test_groups_leave_frozen_parameters_out() -> None:
    model = tuned(tune="frozen")
    groups = parameter_groups(model, TrainingConfig())
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in model.head.parameters()}
    torch.optim.AdamW(groups).step()
