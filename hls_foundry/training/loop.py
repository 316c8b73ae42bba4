"""The training loop: reads top to bottom as training. The parts are beside it; Accelerate brings devices, precision and processes."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from typing import Any

import torch

from hls_foundry.allocator import keep_freed_memory
from hls_foundry.errors import Preempted, TrainingError
from hls_foundry.models.segmenter import build_segmenter
from hls_foundry.models.tuning import merged_state, parameter_groups, prepare_tuning
from hls_foundry.models.weights import load_encoder_weights
from hls_foundry.training.checkpoint import Claim, load_latest, save_checkpoint, save_weights
from hls_foundry.training.data import Batches, ChipDataset, StepData, default_ram_budget
from hls_foundry.training.interruption import StopRequest
from hls_foundry.training.losses import SegmentationLoss, TrainedLoss, require_finite
from hls_foundry.training.metrics_log import MetricsLog, tell_progress
from hls_foundry.training.processes import Processes
from hls_foundry.training.request import TrainingRequest, TrainingResult
from hls_foundry.training.schedule import Schedule
from hls_foundry.training.validation import Stopped, Validator


def train(request: TrainingRequest, *, progress: bool = True) -> TrainingResult:
    """Fine-tune as `request` says, in this process (one of several where `accelerate launch` set it up so), and say what came of it.

    Goes on from the newest checkpoint in `request.folder`, so that an interrupted training ends as if nothing had happened. Raises
    Preempted after SIGTERM, SIGUSR1 or SIGINT, with everything saved; TrainingError and other FoundryErrors for what a user can mend.
    """
    with StopRequest() as stop, torch.random.fork_rng(), keep_freed_memory():
        return Training(request, stop, progress).run()


class Training:
    """What one training is made of, and how it goes."""

    def __init__(self, request: TrainingRequest, stop: StopRequest, progress: bool) -> None:
        config = request.training
        self.request, self.config, self.stop, self.progress = request, config, stop, progress
        self.processes = Processes(config)
        self.digest = request.digest(request.table())

        torch.manual_seed(config.seed)
        segmenter = build_segmenter(request.model, len(request.task.classes))
        self.architecture = segmenter.architecture()
        self.weights = None
        if request.model.weights != "none":
            model = request.model
            self.weights = load_encoder_weights(segmenter.encoder, model.weights, sha256=model.weights_sha256, cache=request.weights_cache)
        self.segmenter = prepare_tuning(segmenter, request.model)
        self.loss = SegmentationLoss(config.loss, len(request.task.classes), config.class_weights)
        groups: list[Any] = [dict(group) for group in parameter_groups(self.segmenter, config)]
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True)
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        trained_loss = TrainedLoss(self.segmenter, self.loss, request.model.auxiliary_weight)
        self.model, self.optimizer = self.processes.accelerator.prepare(trained_loss, optimizer)

        budget = default_ram_budget(self.processes.on_this_machine) if request.ram_budget is None else request.ram_budget
        self.dataset = ChipDataset(request, "train", budget, stop.check)
        self.validator = Validator(request, self.processes, budget // 2)
        self.schedule = Schedule.of(config, len(self.dataset))
        self.done = 0  # optimiser steps
        self.best: dict[str, Any] | None = None
        self.worse = 0  # validations since the best
        self.history: list[dict[str, Any]] = []
        self.resumed_from = self._resume()

    def run(self) -> TrainingResult:
        """Train from where the last checkpoint stands to the end, and return the result.

        Raises Preempted once everything is saved where a signal asked to stop, TrainingError where the loss is not a number.
        """
        started = time.monotonic()
        total = self.schedule.total_steps
        with (
            MetricsLog(self.request.folder, total, self.history, writes=self.processes.first, progress=self.progress) as metrics,
            Batches(self.dataset, self.processes.rank, self.processes.count) as batches,
        ):
            self._validate_if_due(metrics)  # an interruption may have come between a step and its validation
            for data in batches.steps(self.done, self.done if self._ends_early() else total):
                metrics.train(self._step(data))
                if signal := self.processes.agree_to_stop(self.stop):
                    self._save_and_stop(signal)
                self._validate_if_due(metrics)
                if self.schedule.saves(self.done) or self._ends_early():
                    self._save()
                if self._ends_early():
                    break
                metrics.restart_clock()
        return self._result(metrics.samples_per_s(last=total), time.monotonic() - started)

    def _step(self, data: StepData) -> dict[str, Any]:
        """One optimiser step on this process's share of a global batch."""
        accelerator, config = self.processes.accelerator, self.config
        # Dropout draws from seed, step and rank alone: no state of a generator needs to outlive a step.
        torch.manual_seed((config.seed * 1_000_003 + self.done) * 1_009 + self.processes.rank)
        factor = self.schedule.factor(self.done)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        batches = [batch.to(self.processes.device) for batch in data.batches]
        counts = self.processes.sum(sum((self.loss.counts(batch.labels) for batch in batches[1:]), self.loss.counts(batches[0].labels)))
        self.model.train()
        loss = torch.zeros((), dtype=torch.float64, device=self.processes.device)
        for number, batch in enumerate(batches, start=1):
            with contextlib.nullcontext() if number == len(batches) else accelerator.no_sync(self.model):
                share = self.model(batch, counts)
                accelerator.backward(share * self.processes.count)  # the exchange takes the mean; shares add up
            loss += share.detach()
        value = require_finite("loss", float(self.processes.sum(loss)), self.done + 1, data.chips)
        accelerator.unscale_gradients(self.optimizer)
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if self.processes.precision != "fp16":  # fp16's scaler skips such a step and goes on with a smaller scale
            require_finite("gradient norm", norm, self.done + 1, data.chips)
        if config.clip_norm is not None and norm > config.clip_norm:
            torch._foreach_mul_(gradients, config.clip_norm / (norm + 1e-6))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        epoch = round(self.done / self.schedule.steps_per_epoch, 4)
        rate = config.learning_rate * factor
        return {"step": self.done, "epoch": epoch, "loss": value, "learning_rate": rate, "grad_norm": norm, "samples": config.batch_size}

    def _validate_if_due(self, metrics: MetricsLog) -> None:
        """Score the model on whole validation chips where the schedule says so, and keep the best weights."""
        if not self.done or not self.schedule.validates(self.done) or self.history[-1]["kind"] == "validation":
            return
        try:
            scores = self.validator(self.segmenter, self.loss, lambda: self.processes.agree_to_stop(self.stop), self.stop.check)
        except Stopped as stopped:
            self._save_and_stop(stopped.signal)
        record = {"step": self.done, "epoch": self.history[-1]["epoch"], **scores}
        better = self.best is None or (scores["miou"] or 0.0) > (self.best["miou"] or 0.0)
        if better:
            self.best, self.worse = record, 0
            if self.processes.first:
                save_weights(self.request.folder / "best.safetensors", merged_state(self.segmenter), {"step": str(self.done)})
        else:
            self.worse += 1
        metrics.validation(record, better)

    def _ends_early(self) -> bool:
        return self.config.patience is not None and self.worse >= self.config.patience

    def _save(self) -> None:
        if self.claim:
            scaler = self.processes.accelerator.scaler
            state = {
                "digest": self.digest, "step": self.done, "best": self.best, "worse": self.worse, "history": self.history,
                "model": self.segmenter.state_dict(), "optimizer": self.optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler else None,
            }  # fmt: skip
            save_checkpoint(self.request.folder / "checkpoints", state, self.claim)
            tell_progress(self.done)
        self.processes.wait()

    def _save_and_stop(self, signal: int) -> None:
        self._save()
        text = f"stopped by signal {signal} after step {self.done} of {self.schedule.total_steps}: state saved, start again to go on"
        raise Preempted(text, signal)

    def _resume(self) -> int | None:
        self.claim = Claim(self.request.folder / "checkpoints") if self.processes.first else None
        state = load_latest(self.request.folder / "checkpoints", self.digest)
        if state is None:
            return None
        self.done, self.best, self.worse, self.history = state["step"], state["best"], state["worse"], state["history"]
        try:
            self.segmenter.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            what = f"{self.request.folder} holds checkpoints of another version of this program ({str(error).splitlines()[0]})"
            raise TrainingError(f"{what}: delete it or train elsewhere") from None
        if state["scaler"] and self.processes.accelerator.scaler:
            self.processes.accelerator.scaler.load_state_dict(state["scaler"])
        return self.done

    def _result(self, samples_per_s: float, seconds: float) -> TrainingResult:
        folder = self.request.folder
        assert self.best is not None  # the last step is always validated
        if self.processes.first:
            TrainingResult(
                digest=self.digest, state=folder / "best.safetensors", architecture=self.architecture, best=self.best, history=self.history,
                steps=self.done, epochs=self.done / self.schedule.steps_per_epoch, stopped="early" if self._ends_early() else "finished",
                resumed_from=self.resumed_from, pretrained=self.weights is not None,
                weights=dataclasses.asdict(self.weights) if self.weights else None, device=str(self.processes.device),
                precision=self.processes.precision, processes=self.processes.count, threads=torch.get_num_threads(),
                samples_per_s=samples_per_s, seconds=seconds,
            ).save(folder)  # fmt: skip
        self.processes.wait()
        return TrainingResult.load(folder)
