"""One training step of a detector, as timm's tasks have it for a classifier."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.task import ClassificationTask, TrainingTask
from torch import Tensor, nn

__all__ = ["DetectionTask", "collate", "to_device"]


class DetectionTask(TrainingTask):
    """A detector and its losses, with what timm's tasks have: checkpoints, averaged weights, several processes.

    Args:
        model: Detector from :func:`create_detector`.
        device: Where it computes.
    """

    def __init__(self, model: nn.Module, device: torch.device | None = None):
        super().__init__(device=device, verbose=False)
        self.trainable_module = model

    # Wrapping in DistributedDataParallel is the same for every network.
    prepare_distributed = ClassificationTask.prepare_distributed  # pyright: ignore[reportAssignmentType]

    def forward(self, input: Any, target: Any) -> dict[str, Any]:
        """Returns ``loss``, the sum of the detector's losses, and ``parts``, each of them by name without gradient.

        Args:
            input: List of images (C, H, W) in [0, 1].
            target: List of the boxes, labels and masks of each.
        """
        losses = self.trainable_module(input, target)
        parts = {name: loss.detach() for name, loss in losses.items()}
        return {"loss": torch.stack(list(losses.values())).sum(), "parts": parts}


def collate(samples: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Returns a batch of images of different sizes: a list of images and a list of targets."""
    return [image for image, _ in samples], [target for _, target in samples]


def to_device(
    images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]], device: torch.device
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Returns a batch on a device."""
    moved = [{name: value.to(device, non_blocking=True) for name, value in target.items()} for target in targets]
    return [image.to(device, non_blocking=True) for image in images], moved
