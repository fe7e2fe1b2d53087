"""The class score that an image keeps under the mask of each group, by depth."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .eval_mode import eval_mode
from .gates import groups_by_layer


@dataclass(frozen=True)
class GroupScores:
    """What one layer's groups see of the classes in one image.

    Attributes:
        layer: Name of the shuffle attention.
        means: Mean activation of each group, (groups, rows, columns).
        probabilities: Of each class when the image is seen through the mask of each group, (groups, classes).
    """

    layer: str
    means: Tensor
    probabilities: Tensor


def group_scores(
    model: nn.Module, image: Tensor, classes: list[int], *, batch_size: int = 32
) -> tuple[list[GroupScores], list[float]]:
    """Returns what the groups of each shuffle attention see of some classes, and the classes' own probabilities.

    The mean activation of a group, between its lowest value as 0 and its highest as 1 and enlarged to the image, is a
    mask: the image is multiplied by it, after normalisation, so that what is masked is the mean colour.

    Args:
        model: Network with shuffle attention; it is afterwards as it was.
        image: (channels, height, width) as the network wants it, on its device.
        classes: The classes to score.
        batch_size: Masked images at a time.

    Raises:
        InputError: If the network has no shuffle attention.

    Source: after Zhang & Yang, SA-Net, arXiv:2102.00240, section 4, on what the groups respond to.
    """
    by_layer = groups_by_layer(model, image[None])
    found = []
    with eval_mode(model), torch.no_grad():
        whole = model(image[None]).float().softmax(1)[0, classes].tolist()
        for name, means in by_layer.items():
            masks = as_masks(means[0], image.shape[1:])
            parts = [model(image * mask[:, None]).float().softmax(1) for mask in masks.split(batch_size)]
            found.append(GroupScores(name, means[0], torch.cat(parts)[:, classes]))
    return found, whole


def as_masks(means: Tensor, size: torch.Size) -> Tensor:
    """Returns maps (N, rows, columns) between 0 and 1 in the size of an image, (N, height, width)."""
    low, high = means.amin((1, 2), keepdim=True), means.amax((1, 2), keepdim=True)
    scaled = (means - low) / (high - low).clamp_min(torch.finfo(means.dtype).tiny)
    return functional.interpolate(scaled[:, None], list(size), mode="bilinear", align_corners=False)[:, 0]
