"""torchvision's detectors by name, each over a feature pyramid on any backbone.

Heads, anchors, matching, losses and post-processing are torchvision's, with torchvision's defaults: with a plain
ResNet the detectors are those of ``torchvision.models.detection``, parameter by parameter.

Sources: Ren et al., Faster R-CNN, arXiv:1506.01497; He et al., Mask R-CNN, arXiv:1703.06870; Lin et al., RetinaNet,
arXiv:1708.02002; Tian et al., FCOS, arXiv:1904.01355; Lin et al., FPN, arXiv:1612.03144.
"""

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from ..attach import attach
from ..errors import InputError, asked_for, unknown
from .detector_weights import PLAIN, WITHOUT_EPS, detector_weights, load_detector, plain_depth, published_weights
from .pyramid import PyramidBackbone, create_body, freeze_first_stages, load_backbone, normalisation

__all__ = ["ARCHITECTURES", "create_detector"]
PYRAMID_CHANNELS = 256
WITH_WEIGHTS_TRAINABLE = 3  # stages of a backbone that has weights; Detectron and torchvision train three


@dataclass(frozen=True)
class Architecture:
    """A detector of torchvision and the feature pyramid of its paper.

    Attributes:
        network: Class of the detector.
        strides: Strides of the maps below the pyramid.
        extra_blocks: Create the levels above them, from the number of channels of a level.
        losses: Names of its losses.
        masks: Whether it predicts masks.
        anchors: Name of its argument for anchors, and their octaves at each level; None without anchors.
        min_channels: Least width of the pyramid. A group norm in 32 groups needs two channels in each: it fails on a
            level of one pixel otherwise.
    """

    network: type[nn.Module]
    strides: tuple[int, ...]
    extra_blocks: Callable[[int], ExtraFPNBlock]
    losses: tuple[str, ...]
    masks: bool = False
    anchors: tuple[str, tuple[float, ...]] | None = None
    min_channels: int = 32


def _pooled(channels: int) -> ExtraFPNBlock:
    return LastLevelMaxPool()


def _p6_and_p7(channels: int) -> ExtraFPNBlock:
    return LastLevelP6P7(channels, channels)


_RPN_ANCHORS = ("rpn_anchor_generator", (0.0,))
_RCNN_LOSSES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")
_DENSE_LOSSES = ("classification", "bbox_regression")
ARCHITECTURES = {
    "faster_rcnn": Architecture(FasterRCNN, (4, 8, 16, 32), _pooled, _RCNN_LOSSES, anchors=_RPN_ANCHORS),
    "mask_rcnn": Architecture(
        MaskRCNN, (4, 8, 16, 32), _pooled, (*_RCNN_LOSSES, "loss_mask"), masks=True, anchors=_RPN_ANCHORS
    ),
    # Without stride 4, whose anchors would be too many (RetinaNet, section 4).
    "retinanet": Architecture(
        RetinaNet, (8, 16, 32), _p6_and_p7, _DENSE_LOSSES, anchors=("anchor_generator", (0.0, 1 / 3, 2 / 3))
    ),
    "fcos": Architecture(FCOS, (8, 16, 32), _p6_and_p7, (*_DENSE_LOSSES, "bbox_ctrness"), min_channels=64),
}


def create_detector(
    arch: str,
    backbone: str = "sa_resnet50",
    num_classes: int = 91,
    *,
    weights: str | os.PathLike | None = None,
    may_differ: Iterable[str] | None = None,
    norm_eps: float | None = None,
    pretrained: bool = False,
    trainable_layers: int | None = None,
    frozen_norm: bool | None = None,
    min_size: int | Sequence[int] = 800,
    max_size: int = 1333,
    anchor_sizes: Sequence[int] | None = None,
    pyramid_channels: int = PYRAMID_CHANNELS,
    backbone_options: Mapping[str, Any] | None = None,
    attention: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Create a detector on the CPU, in training mode.

    Its input is that of torchvision's detectors: a list of images (C, H, W) in [0, 1], of any sizes, which it
    normalises and resizes. In training it also takes a list of targets, and returns a dict of losses. A target is a
    dict of ``boxes`` (N, 4) as x1, y1, x2, y2 in pixels, ``labels`` (N,) from 1 and, for ``mask_rcnn``, ``masks``
    (N, H, W). In evaluation it returns for each image a dict of ``boxes``, ``labels``, ``scores`` and, for
    ``mask_rcnn``, ``masks`` (N, 1, H, W) in [0, 1], at the size of the image.

    Args:
        arch: "faster_rcnn", "mask_rcnn", "retinanet" or "fcos".
        backbone: Name of a model registered with timm, by timm or by this package.
        num_classes: Number of classes including the background, which is label 0.
        weights: Checkpoint of a classifier, which is loaded into the backbone without its head, or of a whole detector,
            such as torchvision's, whose predictors are new if it has other classes. ``"plain"`` takes torchvision's
            weights of plain networks, downloaded if needed: the detector that is trained on COCO if the backbone is a
            ResNet-50 of any attention, otherwise the ImageNet weights of the backbone's depth. To weights of a plain
            model, attention is added that starts as the identity.
        may_differ: Patterns of entries of a file that need not fit, instead of the classifier's or predictors'.
        norm_eps: Epsilon of the frozen norms in a file of torchvision's; by default 0, as torchvision has it on COCO.
        pretrained: Whether to load timm's weights of the backbone, downloaded if needed.
        trainable_layers: Number of stages of the backbone that are trained, counted from the last; 5 is a whole
            ResNet with its stem. By default 3 of a backbone with weights, and all of one without.
        frozen_norm: Whether the backbone's BatchNorm keeps its statistics, scale and shift. By default it does in a
            backbone with weights.
        min_size: Length of the shorter side of a resized image, in pixels. Training draws from several at random;
            evaluation uses the last.
        max_size: Upper bound of the longer side, in pixels.
        anchor_sizes: Side of the anchors of each of the five levels, in pixels of the resized image; 32 to 512 by
            default. Objects half the size of the smallest are rarely detected.
        pyramid_channels: Number of channels of each level of the pyramid and of the convolutions of the heads; a
            multiple of 32, for FCOS at least 64. With 64 instead of 256 the masks of a small data set cost a sixteenth.
        backbone_options: Further arguments of ``timm.create_model``.
        attention: Attention that is attached to the backbone: arguments of :func:`attach`, with its ``name``.
        **kwargs: Further arguments of torchvision's detector, such as ``box_detections_per_img``.

    Raises:
        InputError: If there is no such detector or backbone, or an argument does not fit.
        CheckpointError: If ``weights`` do not fit the backbone.

    Example:
        >>> detector = create_detector("mask_rcnn", "sa_resnet18", num_classes=2, min_size=256)
    """
    if arch not in ARCHITECTURES:
        raise unknown("detector", arch, ARCHITECTURES)
    if num_classes < 2:
        raise InputError(f"num_classes must be at least 2, background and one more, got {num_classes}")
    if weights is not None and pretrained:
        raise InputError(f"the backbone has its weights either from {weights} or pretrained, not both")
    chosen = ARCHITECTURES[arch]
    if pyramid_channels < chosen.min_channels or pyramid_channels % 32:
        raise InputError(
            f"pyramid_channels of {arch} must be a multiple of 32 from {chosen.min_channels} on, got {pyramid_channels}"
        )
    require_arguments(arch, kwargs)
    options, whole = dict(backbone_options or {}), None
    if weights == PLAIN:
        if plain_depth(backbone) == 50 and pyramid_channels == PYRAMID_CHANNELS:
            whole = published_weights(arch)
        else:
            pretrained, options = True, {"pretrained_cfg": "tv_in1k", **options}
    elif weights is not None:
        whole = detector_weights(weights)
    body: Any = create_body(backbone, chosen.strides, pretrained=pretrained, options=options)
    if attention:
        how = {"example": torch.zeros(1, *body.pretrained_cfg["input_size"]), **attention}
        attach(body, how.pop("name"), **how)
    if weights is not None and weights != PLAIN and whole is None:
        load_backbone(body, backbone, weights, may_differ=may_differ)
    has_weights = pretrained or weights is not None
    if trainable_layers is None and has_weights:
        trainable_layers = WITH_WEIGHTS_TRAINABLE
    if trainable_layers is not None:
        freeze_first_stages(body, trainable_layers)
    frozen_norm = has_weights if frozen_norm is None else frozen_norm
    levels = chosen.extra_blocks(pyramid_channels)
    pyramid = PyramidBackbone(body, pyramid_channels, levels, frozen_norm=frozen_norm)
    settings = {**normalisation(body), "min_size": min_size, "max_size": max_size, **kwargs}
    if anchor_sizes is not None:
        settings |= _anchors(arch, anchor_sizes)
    with asked_for(arch=arch, **kwargs):
        detector: Any = chosen.network(pyramid, num_classes, **settings)
    if chosen.masks and pyramid_channels != PYRAMID_CHANNELS:
        # torchvision does not take the width of this head from the pyramid.
        detector.roi_heads.mask_head = MaskRCNNHeads(pyramid_channels, (pyramid_channels,) * 4, 1)
        detector.roi_heads.mask_predictor = MaskRCNNPredictor(pyramid_channels, pyramid_channels, num_classes)
    if whole is not None:
        published = weights == PLAIN
        if published and arch in WITHOUT_EPS:
            norm_eps = 0.0
        source = f"torchvision's {arch}" if published else str(weights)
        load_detector(detector, arch, whole, source, may_differ=may_differ, norm_eps=norm_eps)
    return detector


def _anchors(arch: str, sizes: Sequence[int]) -> dict[str, AnchorGenerator]:
    """Return torchvision's default anchors with other sizes: three ratios, and RetinaNet's three octaves."""
    anchors = ARCHITECTURES[arch].anchors
    if anchors is None:
        raise InputError(f"{arch} has no anchors; leave anchor_sizes={tuple(sizes)} out")
    if len(sizes) != 5 or not all(size > 0 for size in sizes):
        raise InputError(f"anchor_sizes must be five lengths, one for each level, got {tuple(sizes)}")
    argument, octaves = anchors
    levels = tuple(tuple(int(size * 2**octave) for octave in octaves) for size in sizes)
    return {argument: AnchorGenerator(levels, ((0.5, 1.0, 2.0),) * len(levels))}


def require_arguments(arch: str, kwargs: Mapping[str, Any]) -> None:
    """Refuse arguments that torchvision would accept and silently ignore.

    Raises:
        InputError: If the detector has no such argument.
    """
    known: set[str] = set()
    for part in (*ARCHITECTURES[arch].network.__mro__, GeneralizedRCNNTransform):
        if issubclass(part, nn.Module) and part is not nn.Module:
            known |= set(inspect.signature(part.__init__).parameters)
    for name in kwargs:
        if name not in known:
            raise unknown("argument", name, sorted(known), of=arch)
