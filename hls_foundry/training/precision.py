"""The number format of the forward and backward pass: what the device does well, unless the configuration says otherwise."""

from __future__ import annotations

from typing import Literal, cast, get_args

import torch

from hls_foundry.errors import TrainingError

Precision = Literal["fp32", "bf16", "fp16"]
ACCELERATE_NAMES: dict[Precision, Literal["no", "bf16", "fp16"]] = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def choose_precision(asked: str, device: torch.device) -> Precision:
    """`asked` of the configuration (auto, fp32, bf16, fp16) on `device`. Raises TrainingError for fp16 on a CPU."""
    if asked == "fp16" and device.type == "cpu":
        raise TrainingError("training.precision=fp16 needs a GPU: choose bf16, fp32 or auto on a CPU")
    for known in get_args(Precision):
        if asked == known:
            return cast(Precision, known)
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu" and cpu_multiplies_bf16():
        return "bf16"
    return "fp32"


def cpu_multiplies_bf16() -> bool:
    """Whether the CPU has instructions for bf16 matrix products (AVX-512 BF16, AMX, Arm's BF16)."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
