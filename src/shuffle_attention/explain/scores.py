"""Scores of how well a map tells which pixels a model's prediction depends on."""

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, require_extra
from .stages import eval_mode


@dataclass(frozen=True)
class Faithfulness:
    """The scores of one image.

    Attributes:
        deletion: Area under the class probability while pixels are removed, the most important first; lower is better
            (Petsiuk et al., RISE).
        insertion: The same while pixels are added to a blurred image; higher is better.
        drop: Percentage of its probability that the class loses when the map masks the image; lower is better
            (Chattopadhay et al., Grad-CAM++).
        increase: 100 if the probability rises instead, else 0; higher is better.
    """

    deletion: float
    insertion: float
    drop: float
    increase: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


class _GivenMap:
    """A given map instead of the extractor that torchcam's metrics expect."""

    def __init__(self, model: nn.Module, share: Tensor):
        self.model, self.share = model, share

    def __call__(self, *_: Any, **__: Any) -> list[Tensor]:
        return [self.share]

    def fuse_cams(self, cams: list[Tensor]) -> Tensor:
        return cams[0]

    def _hooks_off(self) -> Any:
        return nullcontext()


def faithfulness(
    model: nn.Module, images: Tensor, maps: Tensor, classes: Tensor, *, steps: int = 32, batch_size: int = 64
) -> list[Faithfulness]:
    """Return the scores of each image, computed by torchcam's metrics.

    Removed pixels become the mean colour, which is 0 after normalisation. Pixels are added to the image blurred by a
    Gaussian of standard deviation 5 / 224 of its side. The masked image is the normalised image times the map.

    Args:
        model: Model that returns (B, classes) logits; its state is restored afterwards.
        images: Preprocessed images (B, channels, height, width) on the model's device.
        maps: Importance of each pixel, (B, height, width), in [0, 1] (:meth:`.Explanation.shares`).
        classes: The class explained in each image, (B,).
        steps: Number of steps in which all pixels are removed or added. If it does not divide their number, each step
            but the last has that quotient, rounded up.
        batch_size: Images per forward pass.

    Raises:
        InputError: If the shapes do not match, a class does not exist, ``steps`` is below 1, or torchcam is missing.

    Sources: Petsiuk, Das & Saenko, RISE, arXiv:1806.07421, section 4.2; Chattopadhay et al., Grad-CAM++,
    arXiv:1710.11063, section 4.1.
    """
    if maps.shape != (len(images), *images.shape[2:]) or classes.shape != (len(images),):
        raise InputError(
            f"maps must be (B, height, width) and classes (B,) for images {tuple(images.shape)}, got "
            f"{tuple(maps.shape)} and {tuple(classes.shape)}"
        )
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}")
    require_extra("torchcam", extra="explain", note=" (Python 3.11 or later)")
    from torchcam.metrics import ClassificationMetric, DeletionInsertionMetric

    scores = []
    with eval_mode(model), torch.no_grad():
        for image, share, target in zip(images.split(1), maps.split(1), classes.tolist(), strict=True):
            given = _GivenMap(model, share), partial(_probabilities, target=target)
            curve = partial(DeletionInsertionMetric, *given, steps=steps, batch_size=batch_size)
            removed, added, masked = curve(), curve(baseline=_blurred), ClassificationMetric(*given)
            for metric in (removed, added, masked):
                metric.update(image, target)
            drop, increase = masked.summary().values()
            scores.append(
                Faithfulness(
                    deletion=removed.summary()["deletion_auc"],
                    insertion=added.summary()["insertion_auc"],
                    drop=100 * drop,
                    increase=100 * increase,
                )
            )
    return scores


def _probabilities(logits: Tensor, target: int) -> Tensor:
    if not 0 <= target < logits.shape[1]:
        raise InputError(f"classes must be from 0 to {logits.shape[1] - 1}, got {target}")
    return logits.float().softmax(1)


def _blurred(images: Tensor) -> Tensor:
    from torchvision.transforms.functional import gaussian_blur  # takes a second to load

    height, width = images.shape[2:]
    return gaussian_blur(images, [_window(height), _window(width)], [5 * height / 224, 5 * width / 224])


def _window(side: int) -> int:
    """Return the width of the Gaussian's window: three deviations to either side, less where reflection ends."""
    return 2 * min(round(3 * 5 * side / 224), side - 1) + 1
