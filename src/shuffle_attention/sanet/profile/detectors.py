"""Parameters and multiply-adds of a detector at a given size of image."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from ...models.pyramid import PyramidBackbone

__all__ = ["Cost", "detector_cost", "keep_all"]


@dataclass(frozen=True)
class Cost:
    """What a detector costs.

    Attributes:
        parameters: All of them.
        trainable: Those that have gradients.
        macs: Multiply-adds of convolutions and matrix products for one image; the field's "GFLOPs" for detectors
            are these, in units of 1e9.
        by_part: The same for each part: ``backbone.body``, ``backbone.fpn``, and the heads.
    """

    parameters: int
    trainable: int
    macs: int
    by_part: dict[str, int]


@torch.inference_mode()
def detector_cost(model: nn.Module, height: int = 800, width: int = 1333) -> Cost:
    """Returns what a detector costs on an image that is resized to ``height`` x ``width``.

    The image is padded to a multiple of 32 as always, 800 x 1344 by default. R-CNNs are counted with as many
    proposals, and for masks as many detections, as they take at most (1,000 and 100 by default), whatever the
    weights would propose.

    Args:
        model: Detector from :func:`create_detector`.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
    """
    # Thresholds are changed below, and a copy on the CPU leaves the detector as it is.
    model = deepcopy(model).float().cpu().eval()
    parts = cast(Any, model)
    parts.transform.min_size, parts.transform.max_size = (min(height, width),), max(height, width)
    keep_all(model)
    counter = FlopCounterMode(display=False)
    with counter:
        model([torch.zeros(len(parts.transform.image_mean), height, width)])
    counts = {name.removeprefix(f"{type(model).__name__}."): sum(ops.values()) for name, ops in _by_module(counter)}
    body = cast(PyramidBackbone, parts.backbone)
    names = [f"backbone.{name}" for name, _ in body.named_children()]
    names += [name for name, _ in model.named_children() if name not in ("backbone", "transform")]
    return Cost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trainable=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        macs=counter.get_total_flops() // 2,
        by_part={name: counts[name] // 2 for name in names if name in counts},
    )


def keep_all(model: nn.Module) -> None:
    """Lets a detector go on with as many proposals and detections as it takes at most, in place.

    What it computes is then the same whatever its weights are.
    """
    parts = cast(Any, model)
    if isinstance(model, GeneralizedRCNN):
        parts.rpn.nms_thresh = 1.0
        parts = parts.roi_heads
    parts.nms_thresh, parts.score_thresh = 1.0, -1.0


def _by_module(counter: FlopCounterMode) -> Any:
    return counter.get_flop_counts().items()
