from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hls_foundry.training.losses import SegmentationLoss

WEIGHTS = (0.3, 0.7)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    labels = torch.randint(-1, 2, (6, 9, 11))
    labels[4] = -1  # a sample without a valid pixel
    labels[5] = 0  # and one without class 1
    return torch.randn(6, 2, 9, 11, requires_grad=True), labels


def plain_dice(logits: Tensor, labels: Tensor, weights: tuple[float, float]) -> Tensor:
    """Dice as the paper has it, by autograd, a sample and a class at a time."""
    losses = []
    for scores, label in zip(logits, labels, strict=True):
        valid = label != -1
        if not valid.any():
            continue
        p = scores.softmax(0)
        per_class = []
        for index in (0, 1):
            t = (label[valid] == index).float()
            q = p[index][valid]
            per_class.append(1 - (2 * (q * t).sum() + 1) / (q.square().sum() + t.square().sum() + 1))
        losses.append((per_class[0] * weights[0] + per_class[1] * weights[1]) / sum(weights))
    return torch.stack(losses).mean()


def test_cross_entropy_is_torchs(batch: tuple[Tensor, Tensor]) -> None:
    logits, labels = batch
    loss = SegmentationLoss("cross_entropy", class_weights=WEIGHTS)
    ours = loss(logits, labels, loss.counts(labels))
    theirs = F.cross_entropy(logits, labels, torch.tensor(WEIGHTS), ignore_index=-1)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, logits)[0], torch.autograd.grad(theirs, logits)[0])


@pytest.mark.parametrize("weights", [(1.0, 1.0), WEIGHTS])
def test_dice_and_its_gradient_are_the_papers(batch: tuple[Tensor, Tensor], weights: tuple[float, float]) -> None:
    logits, labels = batch
    loss = SegmentationLoss("dice", class_weights=weights)
    ours = loss(logits, labels, loss.counts(labels))
    theirs = plain_dice(logits, labels, weights)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, logits)[0], torch.autograd.grad(theirs, logits)[0], atol=1e-7, rtol=1e-4)


def test_the_sum_is_the_sum(batch: tuple[Tensor, Tensor]) -> None:
    logits, labels = batch
    values = {}
    for kind in ("dice", "cross_entropy", "dice_cross_entropy"):
        loss = SegmentationLoss(kind, class_weights=WEIGHTS)
        value = loss(logits, labels, loss.counts(labels))
        values[kind] = value.detach(), torch.autograd.grad(value, logits)[0]
    for place in (0, 1):
        torch.testing.assert_close(values["dice_cross_entropy"][place], values["dice"][place] + values["cross_entropy"][place])


def test_shares_of_a_cut_up_batch_sum_to_the_whole(batch: tuple[Tensor, Tensor]) -> None:
    """Processes and accumulation steps give the loss and the gradient of the whole batch, though their valid pixels differ in number."""
    logits, labels = batch
    loss = SegmentationLoss("dice_cross_entropy", class_weights=WEIGHTS)
    whole = loss(logits, labels, loss.counts(labels))
    counts = loss.counts(labels[:1]) + loss.counts(labels[1:5]) + loss.counts(labels[5:])
    shares = sum(loss(logits[part], labels[part], counts) for part in (slice(0, 1), slice(1, 5), slice(5, 6)))
    assert isinstance(shares, Tensor)
    torch.testing.assert_close(shares, whole)
    torch.testing.assert_close(torch.autograd.grad(shares, logits)[0], torch.autograd.grad(whole, logits)[0])


@pytest.mark.parametrize("kind", ["dice", "cross_entropy", "dice_cross_entropy"])
def test_a_batch_without_a_valid_pixel_costs_nothing(kind: str) -> None:
    logits = torch.randn(2, 2, 8, 8, requires_grad=True)
    labels = torch.full((2, 8, 8), -1)
    loss = SegmentationLoss(kind)
    value = loss(logits, labels, loss.counts(labels))
    assert value.item() == 0
    assert not torch.autograd.grad(value, logits)[0].any()


def test_perfect_predictions_have_no_dice_loss_even_without_class_1() -> None:
    labels = torch.zeros(2, 8, 8, dtype=torch.long)
    labels[1, :4] = 1
    logits = F.one_hot(labels, 2).permute(0, 3, 1, 2) * 40.0
    loss = SegmentationLoss("dice")
    assert loss(logits, labels, loss.counts(labels)).item() == pytest.approx(0, abs=1e-6)
    wrong = loss(-logits, labels, loss.counts(labels)).item()
    assert wrong > 0.95
