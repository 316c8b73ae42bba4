"""Which parameters a fine-tuning trains, at which learning rate, and how LoRA's matrices are folded back into the weights."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor, nn

from hls_foundry.config import ModelConfig, TrainingConfig
from hls_foundry.errors import ConfigError
from hls_foundry.models.segmenter import Segmenter
from hls_foundry.models.variants import VARIANTS

LORA_TARGETS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


class ParameterGroup(TypedDict):
    """One group of an optimiser."""

    name: str
    params: list[nn.Parameter]
    lr: float
    weight_decay: float


def prepare_tuning(model: Segmenter, config: ModelConfig) -> Segmenter:
    """Freeze what `config.tune` says, in place; the heads always train. Returns `model`.

    full: everything. last_blocks: the last N blocks and the final norm. frozen: nothing of the encoder. lora: low-rank matrices
    beside the four linear layers of every block (arXiv:2106.09685). A patch embedding that does not fit the published one
    (`config.patch_size`) starts from random weights and therefore trains in every mode.

    Raises ConfigError without peft, or for more blocks than there are.
    """
    encoder = model.encoder
    if config.tune == "full":
        return model
    for parameter in encoder.parameters():
        parameter.requires_grad_(False)
    if config.tune == "last_blocks":
        depth = len(encoder.blocks)
        if config.last_blocks > depth:
            raise ConfigError(
                f"model.last_blocks {config.last_blocks}: {config.variant} has {depth} blocks; give at most that, or tune: full"
            )
        for part in (*encoder.blocks[depth - config.last_blocks :], encoder.norm):
            for parameter in part.parameters():
                parameter.requires_grad_(True)
    elif config.tune == "lora":
        _inject_lora(encoder, config)
    if config.patch_size not in (None, VARIANTS[config.variant].patch_size):
        for parameter in encoder.patch_embed.parameters():
            parameter.requires_grad_(True)
    return model


def _inject_lora(encoder: nn.Module, config: ModelConfig) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ConfigError("model.tune lora needs the package peft: pip install 'hls-foundry[lora]', or choose another model.tune") from None
    lora = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=list(LORA_TARGETS), lora_dropout=0.0)
    inject_adapter_in_model(lora, encoder)


def parameter_groups(model: Segmenter, config: TrainingConfig) -> list[ParameterGroup]:
    """The trainable parameters in groups of equal learning rate and weight decay, in a fixed order.

    Layer-wise decay (arXiv:2106.08254): the heads and the encoder's final norm have `learning_rate`, block i of n has it times
    layer_decay^(n + 1 − i), the embeddings times layer_decay^(n + 1). No weight decay on biases, norms, scales and the class token.
    """
    depth = len(model.encoder.blocks)
    groups: dict[tuple[int, bool], ParameterGroup] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = layer_of(name, depth)
        decays = parameter.ndim > 1 and not name.endswith("cls_token")
        group = groups.setdefault(
            (layer, decays),
            {
                "name": f"layer {layer}, {'weights' if decays else 'biases and norms'}",
                "params": [],
                "lr": config.learning_rate * config.layer_decay ** (depth + 1 - layer),
                "weight_decay": config.weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def layer_of(name: str, depth: int) -> int:
    """0 for the embeddings, 1…depth for the blocks, depth + 1 for the encoder's final norm and the heads."""
    if name.startswith("encoder.blocks."):
        return int(name.split(".")[2]) + 1
    if name.startswith("encoder.") and not name.startswith("encoder.norm."):
        return 0
    return depth + 1


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with LoRA's matrices added into the weights that they are beside: plain keys, same outputs.

    `model` stays as it is, so that training can go on.
    """
    state = {name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items() if ".lora_" not in name}
    with torch.no_grad():
        for name, module in model.named_modules():
            if hasattr(module, "get_delta_weight") and hasattr(module, "base_layer"):
                weight = module.base_layer.weight
                for adapter in module.active_adapters:
                    weight = weight + module.get_delta_weight(adapter)
                state[f"{name}.weight"] = weight.detach()
    return state
