"""Parameters and multiply-adds of a detector at a given size of image."""

from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from ...models.pyramid import PyramidBackbone
from .costs import DetectorSize

_OBJECTS = 8  # per image of a training step


@torch.inference_mode()
def detector_cost(model: nn.Module, height: int = 800, width: int = 1333) -> DetectorSize:
    """Return the size of a detector for an image that is resized to ``height`` x ``width`` pixels.

    The image is padded to a multiple of 32 as always, 800 x 1344 by default. R-CNNs are counted with as many
    proposals, and for masks as many detections, as they keep at most (1,000 and 100 by default), whatever their
    weights.
    """
    # Thresholds are changed below, and a copy on the CPU leaves the detector as it is.
    model = deepcopy(model).float().cpu().eval()
    parts = cast(Any, model)
    parts.transform.min_size, parts.transform.max_size = (min(height, width),), max(height, width)
    keep_all(model)
    with FlopCounterMode(display=False) as counter:
        model([torch.zeros(len(parts.transform.image_mean), height, width)])
    by_module: Any = counter.get_flop_counts().items()
    counts = {name.removeprefix(f"{type(model).__name__}."): sum(ops.values()) for name, ops in by_module}
    body = cast(PyramidBackbone, parts.backbone)
    names = [f"backbone.{name}" for name, _ in body.named_children()]
    names += [name for name, _ in model.named_children() if name not in ("backbone", "transform")]
    return DetectorSize(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trainable=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        macs=counter.get_total_flops() // 2,
        by_part={name: counts[name] // 2 for name in names if name in counts},
    )


def keep_all(model: nn.Module) -> None:
    """Make a detector keep as many proposals and detections as it can, in place, whatever its weights."""
    parts = cast(Any, model)
    if isinstance(model, GeneralizedRCNN):
        parts.rpn.nms_thresh = 1.0
        parts = parts.roi_heads
    parts.nms_thresh, parts.score_thresh = 1.0, -1.0


def work_alike(model: nn.Module, size: tuple[int, int]) -> None:
    """Make untrained detectors comparable, in place, so that only their backbones differ.

    Each keeps the same proposals, and its norms get the statistics of their input: with their initial statistics,
    values would grow or vanish from block to block, at a rate that depends on the backbone.
    """
    keep_all(model)
    parts: Any = model
    if isinstance(model, GeneralizedRCNN):
        head = parts.rpn.head
        for layer in (head.cls_logits, head.bbox_pred):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    body = parts.backbone.body
    norms = [module for module in body.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        body(torch.randn(2, 3, *size))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train()


def random_objects(size: tuple[int, int], count: int, *, masks: bool) -> list[dict[str, Tensor]]:
    """Return the targets of a training step for images of a size: the same random boxes each time, all of class 1.

    The size is height and width in pixels; a mask covers the whole image.
    """
    torch.manual_seed(0)  # other objects would have more or fewer proposals to learn from
    corners = torch.rand(count, _OBJECTS, 2) * torch.tensor([size[1], size[0]]) * 0.7
    boxes = torch.cat([corners, corners + 0.25 * min(size)], dim=2)
    targets = [{"boxes": each, "labels": torch.ones(_OBJECTS, dtype=torch.int64)} for each in boxes]
    if masks:
        for target in targets:
            target["masks"] = torch.ones(_OBJECTS, *size, dtype=torch.uint8)
    return targets
