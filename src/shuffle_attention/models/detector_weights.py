"""Weights for detectors: torchvision's own, files of whole detectors, and classification checkpoints of a backbone."""

import logging
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import get_model_weights

from ..checkpoints import LoadReport, find_state_dict, load_weights, read_checkpoint
from ..checkpoints.weights import COUNTER
from ..errors import InputError, listed

logger = logging.getLogger(__name__)

PLAIN = "plain"
BUILDERS = {arch: f"{arch.replace('_', '')}_resnet50_fpn" for arch in ("faster_rcnn", "mask_rcnn", "retinanet", "fcos")}
_PLAIN_BACKBONE = re.compile(r"(?:\w+_)?resnet(18|34|50|101|152)(?:\.\w+)?")
# Entries whose shapes depend on the number of classes.
_PREDICTORS = ("roi_heads.box_predictor.*", "roi_heads.mask_predictor.mask_fcn_logits.*", "head.*.cls_logits.*")
# torchvision sets the epsilon of the frozen norms to 0 with its weights of these.
WITHOUT_EPS = ("faster_rcnn", "mask_rcnn", "retinanet")


def plain_depth(backbone: str) -> int:
    """Return the number of layers of the plain ResNet that a backbone has weights of.

    Raises:
        InputError: If the backbone is not a ResNet, or its weights are of another kind.
    """
    match = _PLAIN_BACKBONE.fullmatch(backbone)
    if match is None:
        raise InputError(
            f"weights='plain' are those of a plain ResNet, such as for resnet50 or sa_resnet50, and {backbone!r} is "
            f"another model; pretrained=True takes timm's weights of it"
        )
    return int(match[1])


def published_weights(arch: str) -> dict[str, Tensor]:
    """Return torchvision's weights of a detector with a ResNet-50 that is trained on COCO, downloaded if needed."""
    weights: Any = get_model_weights(BUILDERS[arch])
    return weights.COCO_V1.get_state_dict(progress=True, check_hash=True)


def detector_weights(path: str | os.PathLike) -> dict[str, Tensor] | None:
    """Return the weights of a file if they are those of a whole detector, otherwise None."""
    weights, _ = find_state_dict(read_checkpoint(path), path=path)
    return weights if any(re.search(r"(?:^|\.)backbone\.(?:body|fpn)\.", key) for key in weights) else None


def load_detector(
    detector: nn.Module,
    arch: str,
    weights: Mapping[str, Tensor],
    path: str | os.PathLike,
    *,
    may_differ: Iterable[str] | None = None,
    norm_eps: float | None = None,
) -> LoadReport:
    """Load the weights of a whole detector; predictors for another number of classes are new.

    torchvision's weights have frozen norms, most of them trained without an epsilon: they divide by the square root of
    the variance alone. Their scale is changed such that the detector's norms, which have one, compute the same.
    torchvision's detectors that are trained from a backbone alone have an epsilon, and no entry tells the two apart.

    Args:
        detector: Detector of :func:`create_detector`.
        arch: Its architecture.
        weights: State dict.
        path: File that it is from, for messages.
        may_differ: Patterns of entries that may be missing, unexpected or of another shape; by default the predictors.
        norm_eps: Epsilon that the file's frozen norms were trained with. By default none, with a warning, for the
            architectures whose weights torchvision publishes without.

    Raises:
        CheckpointError: If an entry does not fit.
    """
    weights = dict(weights)
    norms = [key.removesuffix("running_var") for key in weights if re.search(r"body\..*\.running_var$", key)]
    norms = [norm for norm in norms if f"{norm}{COUNTER}" not in weights]  # frozen norms do not count batches
    if norms and (norm_eps is not None or arch in WITHOUT_EPS):
        eps = next(module.eps for module in detector.modules() if isinstance(module, _BatchNorm))
        for norm in norms:
            scale, variance = weights[f"{norm}weight"], weights[f"{norm}running_var"].double()
            weights[f"{norm}weight"] = (scale * ((variance + eps) / (variance + (norm_eps or 0))).sqrt()).to(scale)
        if norm_eps is None:
            logger.warning(
                "%s: its frozen norms are taken without an epsilon, as in torchvision's weights of COCO and what is "
                "trained from them. If it was trained from a backbone alone, give --norm-eps 1e-5 (norm_eps=1e-5)",
                path,
            )
    report = load_weights(detector, weights, path, may_differ=_PREDICTORS if may_differ is None else may_differ)
    if report.kept:
        logger.warning(
            "%s lacks attention or has other classes; new and untrained are %s", path, listed(report.kept, 6)
        )
    return report
