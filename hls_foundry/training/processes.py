"""The processes that share one training: who is first, sums over all, and a common answer to whether to stop. Over Accelerate."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor

from hls_foundry.config import TrainingConfig
from hls_foundry.errors import TrainingError
from hls_foundry.training.interruption import StopRequest
from hls_foundry.training.precision import ACCELERATE_NAMES, Precision, choose_precision


class Processes:
    """`rank` of `count`; the environment that `accelerate launch` or torchrun set up decides, alone without one.

    Raises TrainingError where the precision does not suit the device or the batch cannot be shared out.
    """

    def __init__(self, config: TrainingConfig) -> None:
        # Accelerate keeps its choices for the life of the process; an earlier training in it may have had another precision.
        AcceleratorState._reset_state()
        # Accelerate joins several processes over gloo only where it is told that there is nothing but CPUs.
        cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
        self.precision: Precision = choose_precision(config.precision, PartialState(cpu=cpu).device)
        self.accelerator = Accelerator(cpu=cpu, mixed_precision=ACCELERATE_NAMES[self.precision])
        self.device: torch.device = self.accelerator.device
        self.rank: int = self.accelerator.process_index
        self.count: int = self.accelerator.num_processes
        self.first = self.rank == 0
        self.on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if self.count > 1 else 1
        if config.batch_size % (self.count * config.accumulation):
            shares = f"processes × accumulation ({self.count} × {config.accumulation})"
            raise TrainingError(f"training.batch_size {config.batch_size} must be a multiple of {shares}")

    def sum(self, values: Tensor) -> Tensor:
        """`values` summed over the processes, the same on each."""
        if self.count == 1:
            return values
        total: Tensor = self.accelerator.reduce(values.to(self.device), "sum")
        return total

    def agree_to_stop(self, stop: StopRequest) -> int:
        """The signal to stop for, or 0: the same on each process, wherever the signal arrived."""
        received = stop.check()
        if self.count == 1:
            return received
        flags = torch.zeros(65, dtype=torch.int32)
        flags[received] = 1
        signals = self.sum(flags).nonzero().flatten().tolist()
        return int(signals[-1])

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()
