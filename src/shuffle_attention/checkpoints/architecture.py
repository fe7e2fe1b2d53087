"""Recognise which model a state dict belongs to, from the names and shapes of its entries."""

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import timm
import torch
from torch import Tensor

from ..attention import attention_names
from ..models.attention_resnet import resnet_with
from ..models.detectors import ARCHITECTURES, create_detector
from ..models.sa_resnet import STAGES
from .weights import COUNTER, renamed, unwrapped

_CLASSIFIER, _STEM = ("fc.weight", "fc.bias"), ("conv1.weight", "conv1.0.weight")  # their shapes depend on the data
_BLOCK = re.compile(r"(?:^|\.)layer([1-4])\.(\d+)\.(conv3\.)?")
# Where a detector says how many classes it has, and over how many anchors; the first that is there tells its kind.
_DETECTORS = {
    "roi_heads.mask_predictor.mask_fcn_logits.weight": ("mask_rcnn", 1),
    "roi_heads.keypoint_predictor.kps_score_lowres.weight": ("keypoint_rcnn", 1),
    "roi_heads.box_predictor.cls_score.weight": ("faster_rcnn", 1),
    "head.regression_head.bbox_ctrness.weight": ("fcos", 1),
    "head.classification_head.cls_logits.weight": ("retinanet", 9),
}
_BODY = "backbone.body."
_PATIENCE = 5.0  # seconds
_DENSE = "head.classification_head.cls_logits.weight"


@dataclass(frozen=True)
class Architecture:
    """A model, and how a state dict fits it.

    Attributes:
        model: Name of the model in timm; for a detector, that of its backbone.
        weights: The state dict under the names of the model; for a detector, of the whole detector.
        attention: Name of the attention, such as ``shuffle`` or ``none``; empty for a model of another family.
        start: ``published`` or ``identity``: how the attention starts; empty without attention.
        attached: Whether the attention has the names that :func:`attach` gives it; those of ``sa_resnet`` are the same.
        detector: Kind of the detector, such as ``mask_rcnn``; empty for a classifier.
        num_classes: Number of classes, of a detector with the background; None if there is no classifier.
        in_chans: Channels of the input.
        small_stem: Whether the first convolution is the 3x3 one for small images.
        prefixes: Prefixes of the file's names that were removed.
        unused: Entries of the file that are no part of the model.
        missing: Entries that the model has and the state dict lacks.
        unexpected: Entries that the model does not have.
        reshaped: Entries of another shape.
    """

    model: str
    weights: dict[str, Tensor]
    attention: str = ""
    start: str = ""
    attached: bool = False
    detector: str = ""
    num_classes: int | None = None
    in_chans: int = 3
    small_stem: bool = False
    prefixes: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()

    @property
    def differing(self) -> int:
        """Number of entries that are missing, unexpected or of another shape."""
        return len(self.missing) + len(self.unexpected) + len(self.reshaped)


def recognise(weights: Mapping[str, Tensor]) -> Architecture | None:
    """Return the model that a state dict belongs to, or the most similar one; None if none is similar.

    Known are ResNets of all depths with any registered attention, in their blocks or attached; ShuffleNets; and
    torchvision's detectors with these as backbones.

    Raises:
        CheckpointError: If the model stands there under several prefixes.
    """
    weights = unwrapped(weights)
    for end, (detector, anchors) in _DETECTORS.items():
        if head := next((key for key in weights if key.endswith(end)), None):
            return _detector(detector, head.removesuffix(end), anchors, weights)
    similar = sorted(_similar(weights), key=lambda each: each.differing)
    return similar[0] if similar and similar[0].differing < 0.4 * len(weights) else None


def _detector(kind: str, prefix: str, anchors: int, weights: dict[str, Tensor]) -> Architecture | None:
    """Return the detector that a state dict belongs to; None if its backbone is not known."""
    whole = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    backbone = recognise({key.removeprefix(_BODY): value for key, value in whole.items() if key.startswith(_BODY)})
    if backbone is None:
        return None
    counted = whole.get(_DENSE if _DENSE in whole else "roi_heads.box_predictor.cls_score.weight")
    num_classes = None if counted is None else len(counted) // anchors
    pyramid = whole.get("backbone.fpn.inner_blocks.0.0.weight")
    own: Mapping[str, Tensor] = whole
    if kind in ARCHITECTURES and num_classes and num_classes > 1 and pyramid is not None:
        with torch.device("meta"):
            model = create_detector(kind, backbone.model, num_classes, pyramid_channels=len(pyramid))
        own = model.state_dict()
    fit = fitted(backbone.model, whole, own, backbone.attention)
    left = tuple(key for key in weights if not key.startswith(prefix))
    prefixes = (prefix,) if prefix else ()
    return replace(
        fit, detector=kind, num_classes=num_classes, prefixes=prefixes, unused=left, in_chans=backbone.in_chans
    )


def _similar(weights: dict[str, Tensor]) -> Iterator[Architecture]:
    """Yield the models of the families that a state dict could belong to, until one fits."""
    matches = [match for key in weights for match in [_BLOCK.search(key)] if match]
    blocks, bottleneck = {(match[1], match[2]) for match in matches}, any(match[3] for match in matches)
    stages = tuple(sum(stage == str(number) for stage, _ in blocks) for number in (1, 2, 3, 4))
    depths = [depth for depth, layers in STAGES.items() if layers == stages and (depth >= 50) == bottleneck]
    attentions = attention_names()[::-1] if any(".sa." in key or ".se." in key for key in weights) else ["none"]
    candidates = [(name, *resnet_with(name, depth)) for depth in depths for name in attentions]
    if any(".branch2." in key for key in weights):
        candidates += [("", name, {}) for name in timm.list_models("shufflenet_v2*")]
    for attention, name, options in candidates:
        with torch.device("meta"):
            own = timm.create_model(name, **options).state_dict()
        architecture = fitted(name, weights, own, attention)
        yield architecture
        if not architecture.differing:
            return


def in_timm(weights: Mapping[str, Tensor], hints: Iterable[str] = ()) -> tuple[list[str], int | None]:
    """Return models of timm with exactly the entries of a state dict, at most three, and its number of classes.

    Args:
        weights: State dict of any model.
        hints: Names to try first. Others are tried for ``_PATIENCE`` seconds.
    """
    weights, names, num_classes = unwrapped(weights), [], None
    end = time.monotonic() + _PATIENCE
    for name in dict.fromkeys([*filter(timm.is_model, hints), *timm.list_models()]):
        cfg = timm.get_pretrained_cfg(name)
        first, heads = (_each(cfg and cfg.first_conv), _each(cfg and cfg.classifier))
        if not first or not all(any(key.endswith(f"{layer}weight") for key in weights) for layer in first):
            continue
        if len(names) == 3 or time.monotonic() > end:
            break
        with suppress(Exception), torch.device("meta"):  # some models cannot be created without values
            own = timm.create_model(name).state_dict()
            mine, *_ = renamed(weights, own)
            bodies = [
                {key: value.shape for key, value in each.items() if not key.startswith(heads or "\0")}
                for each in (own, mine)
            ]
            if bodies[0] == bodies[1]:
                names.append(name)
                num_classes = next((len(mine[f"{h}weight"]) for h in heads if f"{h}weight" in mine), None)
    return names, num_classes


def _each(layers: object) -> tuple[str, ...]:
    """Return the names in a field of timm's cfg, which has one, several or none, each with a dot."""
    return tuple(f"{layer}." for layer in ([layers] if isinstance(layers, str) else layers or ()))  # pyright: ignore


def fitted(model: str, weights: Mapping[str, Tensor], own: Mapping[str, Tensor], attention: str = "") -> Architecture:
    """Return how a state dict fits a model with any number of classes and input channels.

    Args:
        model: Name of the model in timm.
        weights: State dict.
        own: Entries of the model.
        attention: Name of its attention.
    """
    attached = attention != "shuffle" and any(".sa." in key for key in weights)
    blended = any(re.search(r"\.s[ae]\.layer\.", key) for key in weights)
    if attention not in ("", "none", "shuffle"):
        child = f".{'sa' if attached else 'se'}.{'layer.' if blended else ''}"
        own = {key.replace(".se.", child): value for key, value in own.items()}
    weights, prefixes, unused = renamed(weights, own)
    starts = {key for key in weights if re.search(r"\.s[ae]\.(alpha|gain)$", key)}
    free = {key for key in (*_CLASSIFIER, *_STEM) if key in own}
    classifier, stem = weights.get("fc.weight"), next((weights[key] for key in _STEM if key in weights), None)
    return Architecture(
        model,
        weights,
        attention=attention,
        start="" if attention in ("", "none") else "identity" if starts else "published",
        attached=attached,
        num_classes=None if classifier is None else len(classifier),
        in_chans=stem.shape[1] if stem is not None and stem.dim() == 4 else 3,
        small_stem=stem is not None and stem.shape[-1] == 3 and "conv1.weight" in weights,
        prefixes=prefixes,
        unused=unused,
        missing=tuple(k for k in own if k not in weights and not k.endswith(COUNTER) and k not in _CLASSIFIER),
        unexpected=tuple(key for key in weights if key not in own and key not in starts),
        reshaped=tuple(k for k in own if k not in free and k in weights and weights[k].shape != own[k].shape),
    )
