"""Accuracy and loss of a classifier, and its predictions with the worst mistakes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from timm.data import IterableImageDataset
from timm.task.evaluator import ClassificationEvaluator
from torch import Tensor, nn
from torch.nn import functional

from ....errors import DataError
from ...device import Process
from ..evaluation import Scores, run_model


def evaluate(
    model: nn.Module,
    batches: Any,
    process: Process,
    *,
    precision: str = "fp32",
    channels_last: bool = False,
    watch: Callable[[int], None] | None = None,
) -> Scores:
    """Return ``loss``, ``top1`` and ``top5`` of a classifier over the batches of all processes.

    Args:
        model: Model that returns logits (B, classes).
        batches: Loader of images (B, C, H, W) and labels (B,); the label -1 marks an unreadable image.
        process: This process.
        precision: fp32, bf16 or fp16.
        channels_last: Whether the model receives NHWC images.
        watch: Called with the number of images after each batch.

    Raises:
        DataError: If a label exceeds the classes of the model, or no image can be read.
    """
    evaluator = ClassificationEvaluator(process.device)
    unreadable = 0

    def count(images: Tensor, logits: Tensor, labels: Tensor) -> None:
        nonlocal unreadable
        readable = labels >= 0
        unreadable += int((~readable).sum())
        if len(labels) and int(labels.max()) >= logits.shape[1]:
            raise DataError(f"label {int(labels.max())} exceeds the {logits.shape[1]} classes of the model")
        evaluator.update(logits[readable], labels[readable])

    options: dict[str, Any] = {"precision": precision, "channels_last": channels_last, "watch": watch}
    speed = run_model(model, batches, process, count, **options)
    counts = process.gather((int(evaluator.counts[0]), unreadable))
    images, unreadable = (sum(column) for column in zip(*counts, strict=True))
    if isinstance(getattr(batches, "dataset", None), IterableImageDataset):
        # A stream skips unreadable images; how many there should have been is known.
        unreadable += max(0, len(batches.dataset) - images - unreadable)
    if images == 0:
        raise DataError(f"no image could be evaluated ({unreadable} unreadable)")
    result = evaluator.compute(distributed=process.world_size > 1)
    return Scores({name: result[name] for name in ("top1", "top5", "loss")}, images, unreadable, speed)


@dataclass(frozen=True)
class Mistake:
    """An image whose most probable class is wrong.

    Attributes:
        index: Number of the image in the order of the batches, from 0.
        image: Input of the model, (C, H, W), normalised, on the CPU.
        label: True class.
        predicted: Most probable class.
        probability: Probability of ``predicted``.
        probability_of_label: Probability of ``label``.
        loss: Cross-entropy.
    """

    index: int
    image: Tensor
    label: int
    predicted: int
    probability: float
    probability_of_label: float
    loss: float


@dataclass(frozen=True)
class Predictions:
    """Predictions for labelled images.

    Attributes:
        labels: True class of each readable image, (images,), int64.
        predicted: Most probable class of each, (images,).
        classes: Number of classes.
        mistakes: Wrong predictions of the highest loss, the highest first.
        loss: Mean cross-entropy.
        unreadable: Images that could not be decoded and are not counted.
    """

    labels: Tensor
    predicted: Tensor
    classes: int
    mistakes: list[Mistake]
    loss: float
    unreadable: int

    @property
    def wrong(self) -> Tensor:
        """Whether each prediction is wrong, (images,)."""
        return self.labels != self.predicted


def predict(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    process: Process,
    classes: int,
    *,
    worst: int = 12,
    precision: str = "fp32",
    channels_last: bool = False,
) -> Predictions:
    """Return the predictions of a classifier for the images of this process.

    Args:
        model: Model that returns logits (B, classes).
        batches: Images (B, C, H, W) and labels (B,); the label -1 marks an unreadable image.
        process: This process.
        classes: Number of classes.
        worst: Number of mistakes to keep.
        precision: fp32, bf16 or fp16.
        channels_last: Whether the model receives NHWC images.

    Raises:
        DataError: If no image can be read.
    """
    pairs: list[Tensor] = []
    mistakes: list[Mistake] = []
    total, first = 0.0, 0

    def keep(images: Tensor, logits: Tensor, labels: Tensor) -> None:
        nonlocal total, first, mistakes
        labels, logits = labels.cpu(), logits.float().cpu()
        numbers = (labels >= 0).nonzero().flatten()
        losses = functional.cross_entropy(logits[numbers], labels[numbers], reduction="none")
        predicted = logits[numbers].argmax(1)
        total += float(losses.double().sum())
        pairs.append(torch.stack([labels[numbers], predicted]))
        wrong = (predicted != labels[numbers]).nonzero().flatten()
        for at in wrong[losses[wrong].argsort(descending=True, stable=True)][:worst].tolist():
            loss, number, label, other = float(losses[at]), int(numbers[at]), *pairs[-1][:, at].tolist()
            if len(mistakes) == worst and loss <= mistakes[-1].loss:
                break
            share, image = logits[number].softmax(0), images[number].cpu().contiguous()
            mistake = Mistake(first + number, image, label, other, float(share[other]), float(share[label]), loss)
            mistakes = sorted([*mistakes, mistake], key=lambda mistake: -mistake.loss)[:worst]
        first += len(labels)

    run_model(model, batches, process, keep, precision=precision, channels_last=channels_last)
    labels, predicted = torch.cat(pairs, 1) if pairs else torch.empty(2, 0)
    if not len(labels):
        raise DataError(f"no image could be evaluated ({first} unreadable)")
    return Predictions(labels, predicted, classes, mistakes, total / len(labels), first - len(labels))
