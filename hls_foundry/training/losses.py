"""Dice, cross-entropy and their sum over (B, K, H, W) logits: ignore index −1, class weights, and sums that add up over processes.

Each loss is a sum over samples or pixels divided by a count of the *global* batch (`counts`, summed over processes and
accumulation steps before the forward pass), so the same batch gives the same loss and gradient however it is cut up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hls_foundry.errors import TrainingError
from hls_foundry.models.segmenter import Segmenter
from hls_foundry.training.data import IGNORE, Batch

MOST_NAMES = 8
"""Chips that an error names."""

SMOOTH = 1.0
"""Added to numerator and denominator of Dice, in pixels: an absent class that is nowhere predicted costs nothing."""


class SegmentationLoss(nn.Module):
    """`loss`: dice, cross_entropy or dice_cross_entropy.

    Dice is the mean over samples of 1 − (2 Σ p·t + 1) / (Σ p² + Σ t² + 1), softmax p, averaged over the classes with the class
    weights (Milletari et al. 2016, as mmsegmentation's DiceLoss, which the tutorial trains with). Cross-entropy is the weighted
    mean over valid pixels, as torch's. Arithmetic is float32 whatever the logits are.
    """

    def __init__(self, loss: str, classes: int = 2, class_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.dice = "dice" in loss
        self.cross_entropy = "cross_entropy" in loss
        weights = torch.tensor(class_weights if class_weights is not None else [1.0] * classes, dtype=torch.float32)
        self.class_weights: Tensor
        self.register_buffer("class_weights", weights, persistent=False)

    def counts(self, labels: Tensor) -> Tensor:
        """float64 (2,): weighted valid pixels, and samples with a valid pixel. `labels`: integers (B, H, W)."""
        valid = labels != IGNORE
        pixels = self.class_weights.new_zeros((), dtype=torch.float64)
        for index, weight in enumerate(self.class_weights.tolist()):
            pixels += (labels == index).sum() * weight
        return torch.stack([pixels, valid.flatten(1).any(1).sum().double()])

    def forward(self, logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        """This share of the global batch's loss: the shares of all processes and accumulation steps sum to it.

        `logits` (B, K, H, W), `labels` integers (B, H, W) in 0…K−1 or −1, `counts` as of `self.counts`, over the global batch.
        """
        norms = counts.clamp_min(1e-12).tolist()
        value: Tensor = _ClosedForm.apply(logits, labels, norms, self.class_weights, self.dice, self.cross_entropy)  # type: ignore[no-untyped-call]
        return value


class TrainedLoss(nn.Module):
    """Model and loss as one module, so that mixed precision and the exchange of gradients between processes cover both."""

    def __init__(self, segmenter: Segmenter, loss: SegmentationLoss, auxiliary_weight: float) -> None:
        super().__init__()
        self.segmenter, self.loss, self.auxiliary_weight = segmenter, loss, auxiliary_weight

    def forward(self, batch: Batch, counts: Tensor) -> Tensor:
        """This batch's share of the global batch's loss (see SegmentationLoss)."""
        logits, auxiliary = self.segmenter.forward_training(batch.images, batch.temporal, batch.location)  # (B, K, S, S) each
        value: Tensor = self.loss(logits, batch.labels, counts)
        if auxiliary is not None:
            value = value + self.auxiliary_weight * self.loss(auxiliary, batch.labels, counts)
        return value


class _ClosedForm(torch.autograd.Function):
    """Loss and gradient in one go: autograd's dozen full-size float32 intermediates would cost more than the decode head's last layer."""

    @staticmethod
    def forward(ctx, logits, labels, counts, weights, dice, cross_entropy):  # type: ignore[no-untyped-def]
        batch, classes = logits.shape[:2]
        flat = labels.reshape(batch, -1)
        valid = flat != IGNORE  # (B, N)
        scores = logits.detach().float().reshape(batch, classes, -1)
        log_p = torch.log_softmax(scores, dim=1)  # (B, K, N)
        p = log_p.exp()
        truth = torch.stack([flat == index for index in range(classes)], dim=1).float()  # (B, K, N), 0 where ignored
        total = scores.new_zeros((), dtype=torch.float64)
        gradient = torch.zeros(())
        if cross_entropy:
            scale = weights.view(1, classes, 1) / counts[0]
            total -= (log_p * truth).sum(dim=(0, 2)).double() @ weights.double() / counts[0]
            pixel_weight = (truth * scale).sum(dim=1, keepdim=True)  # (B, 1, N)
            gradient = (p - truth) * pixel_weight
        if dice:
            masked = p * valid.unsqueeze(1)
            numerator = 2 * (masked * truth).sum(2) + SMOOTH  # (B, K)
            denominator = masked.square().sum(2) + truth.sum(2) + SMOOTH
            share = weights / weights.sum()
            some = valid.any(1, keepdim=True)
            total += ((1 - numerator / denominator) * share * some).double().sum() / counts[1]
            outer = (share * some) / counts[1]
            quotient = (2 * outer / denominator).unsqueeze(2)
            slope = (masked * (quotient * (numerator / denominator).unsqueeze(2))).sub_(truth * quotient)
            # Through the softmax: dz = p · (g − Σ p·g).
            slope = p * (slope - (p * slope).sum(1, keepdim=True))
            gradient = gradient.add_(slope) if cross_entropy else slope
        ctx.save_for_backward(gradient.reshape(logits.shape).to(logits.dtype))
        return total.float()

    @staticmethod
    def backward(ctx, above):  # type: ignore[no-untyped-def]
        (gradient,) = ctx.saved_tensors
        return gradient * above.to(gradient.dtype), None, None, None, None, None


def require_finite(what: str, value: float, step: int, chips: Sequence[str]) -> float:
    """`value`, or TrainingError naming the chips of the batch where it is NaN or infinite."""
    if math.isfinite(value):
        return value
    batch = list(dict.fromkeys(chips))
    names = ", ".join(batch[:MOST_NAMES]) + (f" and {len(batch) - MOST_NAMES} more" if len(batch) > MOST_NAMES else "")
    raise TrainingError(f"{what} is {value} at step {step}, on the chips {names}: look at their pixels, or lower training.learning_rate")
