"""One pass over the validation images: what each was taken for, and the mistakes that cost most."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from sklearn.metrics import confusion_matrix
from torch import Tensor, nn
from torch.nn import functional

from ....errors import DataError
from ...device import Process, autocast

__all__ = ["Mistake", "Predictions", "predict"]


@dataclass(frozen=True)
class Mistake:
    """An image whose most probable class is not its own.

    Attributes:
        index: Which image it is, counted from 0 in the order of the batches.
        image: What the network saw, (channels, height, width), normalised, on the CPU.
        label: Its class.
        predicted: What it was taken for.
        probability: That of ``predicted``.
        probability_of_label: That of its class.
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
    """What a classifier made of labelled images.

    Attributes:
        labels: Class of each readable image, (images,), int64.
        predicted: What each was taken for, (images,).
        classes: How many classes there are.
        mistakes: The wrong ones of highest loss, the highest first.
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
        """Whether each was taken for another class, (images,)."""
        return self.labels != self.predicted

    def matrix(self) -> Tensor:
        """Return the number of images of class i predicted as class j, (classes, classes)."""
        return torch.from_numpy(confusion_matrix(self.labels, self.predicted, labels=range(self.classes)))


@torch.inference_mode()
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
    """Returns what a network in evaluation mode makes of the images of this process.

    Args:
        model: Network giving (B, classes) logits.
        batches: Images (B, C, H, W) and labels (B,); the label -1 marks an unreadable image.
        process: Where to compute.
        classes: How many there are.
        worst: How many mistakes to keep.
        precision: fp32, bf16 or fp16.
        channels_last: Whether the images are given in NHWC memory format.

    Raises:
        DataError: If there is no image at all.
    """
    seen: list[tuple[Tensor, Tensor]] = []
    mistakes: list[Mistake] = []
    total, unreadable, first = 0.0, 0, 0
    for images, labels in batches:
        images = images.to(process.device)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast(process, precision):
            logits = model(images)
        labels, logits = labels.cpu(), logits.float().cpu()
        readable = (labels >= 0).nonzero().flatten()
        unreadable += len(labels) - len(readable)
        losses = functional.cross_entropy(logits[readable], labels[readable], reduction="none")
        predicted = logits[readable].argmax(1)
        total += float(losses.double().sum())
        seen.append((labels[readable], predicted))
        wrong = (predicted != labels[readable]).nonzero().flatten()
        for place_in_batch in wrong[losses[wrong].argsort(descending=True, stable=True)][:worst].tolist():
            number = int(readable[place_in_batch])
            share, label, taken_for = logits[number].softmax(0), int(labels[number]), int(predicted[place_in_batch])
            loss = float(losses[place_in_batch])
            if len(mistakes) == worst and loss <= mistakes[-1].loss:
                break
            image = images[number].cpu().contiguous()
            figures = label, taken_for, float(share[taken_for]), float(share[label]), loss
            mistakes = sorted([*mistakes, Mistake(first + number, image, *figures)], key=lambda m: -m.loss)[:worst]
        first += len(labels)
    count = sum(len(labels) for labels, _ in seen)
    if not count:
        raise DataError(f"no image could be evaluated ({unreadable} unreadable)")
    labels, predicted = (torch.cat(parts) for parts in zip(*seen, strict=True))
    return Predictions(labels, predicted, classes, mistakes, total / count, unreadable)
