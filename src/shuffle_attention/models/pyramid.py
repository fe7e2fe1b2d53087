"""A feature pyramid over a classification model of timm, parts of which may be frozen.

Sources: Lin et al., Feature Pyramid Networks, arXiv:1612.03144; He et al., Mask R-CNN, arXiv:1703.06870,
section 3.1; Wu et al., Detectron, which freezes BatchNorm because batches are small.
"""

import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, cast

import timm
from timm.data import resolve_data_config
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, FeaturePyramidNetwork

from ..checkpoints import load_checkpoint
from ..errors import InputError, asked_for

__all__ = ["PyramidBackbone", "create_body", "freeze_first_stages", "load_backbone", "normalisation"]


class PyramidBackbone(nn.Module):
    """The feature maps of a model and a feature pyramid over them: the backbone of torchvision's detectors.

    Frozen BatchNorm is BatchNorm that stays in evaluation mode during training. Unlike a class for frozen norms, it
    keeps the names of classification checkpoints and runs in the fused op at the end of a block.

    Args:
        body: Model that returns a list of maps (B, C, H, W), from fine to coarse, with timm's ``feature_info``.
        out_channels: Number of channels of every level of the pyramid.
        extra_blocks: Module that computes the levels above the coarsest map.
        frozen_norm: Whether the body's BatchNorm uses its running statistics in training too, and is not trained.
    """

    def __init__(self, body: nn.Module, out_channels: int, extra_blocks: ExtraFPNBlock, *, frozen_norm: bool):
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(_feature_info(body).channels(), out_channels, extra_blocks)
        self.out_channels = out_channels
        self.frozen_norm = frozen_norm
        if frozen_norm:
            for norm in self._norms():
                norm.requires_grad_(False)
            self.train(self.training)

    def _norms(self) -> list[_BatchNorm]:
        return [module for module in self.body.modules() if isinstance(module, _BatchNorm)]

    def train(self, mode: bool = True) -> "PyramidBackbone":
        super().train(mode)
        if self.frozen_norm:
            for norm in self._norms():
                norm.eval()
        return self

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the levels of the pyramid for images (B, C, H, W), by name, from fine to coarse."""
        return self.fpn(OrderedDict((str(level), feature) for level, feature in enumerate(self.body(x))))


def create_body(name: str, strides: Iterable[int], *, pretrained: bool, options: Mapping[str, Any]) -> nn.Module:
    """Create a model of timm that returns its feature maps at the given strides.

    Raises:
        InputError: If there is no such model, or it has no such maps.
    """
    if not timm.is_model(name):
        raise InputError(f"no backbone {name!r}; timm.list_models() names them, sa_resnet50 is one")
    strides = list(strides)
    with asked_for(backbone=name, **options):
        last = tuple(range(-len(strides), 0))
        body = timm.create_model(name, pretrained, features_only=True, out_indices=last, **options)
    info = _feature_info(body)
    if info.reduction() != strides or str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC"):
        raise InputError(
            f"a backbone must give maps (B, C, H, W) at strides {strides}; the last {len(strides)} of {name} "
            f"are at {info.reduction()}, as {getattr(body, 'output_fmt', 'NCHW')}"
        )
    return body


def load_backbone(
    body: nn.Module, name: str, path: str | os.PathLike, *, may_differ: Iterable[str] | None = None
) -> None:
    """Load a classification checkpoint into a model without its classifier.

    Args:
        body: Model from :func:`create_body`.
        name: Its name, from which timm knows the name of its classifier.
        path: Checkpoint of the whole model, which :func:`load_checkpoint` can read.
        may_differ: Patterns of entries that need not fit; by default those of the classifier.

    Raises:
        CheckpointError: If the file cannot be read, or anything else does not fit.
    """
    if may_differ is None:
        cfg = timm.get_pretrained_cfg(name)
        classifier = (cfg.classifier if cfg else None) or "fc"
        classifiers = [classifier] if isinstance(classifier, str) else classifier
        may_differ = [f"{part}.*" for part in classifiers]
    load_checkpoint(body, path, may_differ=may_differ)


def freeze_first_stages(body: nn.Module, trainable: int) -> None:
    """Freeze all but the last ``trainable`` stages of a model, in place.

    A ResNet has five: its stem and four stages of blocks. If all of them are trainable, nothing is frozen.

    Raises:
        InputError: If the model does not have that many stages.
    """
    stages = [str(info["module"]) for info in _feature_info(body).info]
    if not 0 <= trainable <= len(stages):
        raise InputError(f"trainable_layers must be from 0 to {len(stages)} for this backbone, got {trainable}")
    if trainable == len(stages):
        return
    last = stages[len(stages) - trainable - 1]
    names = [name for name, _ in body.named_modules()]
    # Some of timm's feature models write "stages.0" as "stages_0".
    inside = [i for i, name in enumerate(names) if _within(name.replace(".", "_"), last.replace(".", "_"))]
    if not inside:
        raise InputError(f"trainable_layers={trainable}: this backbone does not say where its stages end")
    for name in names[: inside[-1] + 1]:
        for parameter in body.get_submodule(name).parameters(recurse=False):
            parameter.requires_grad_(False)


def _within(name: str, stage: str) -> bool:
    return name == stage or name.startswith(f"{stage}_")


def normalisation(body: nn.Module) -> dict[str, list[float]]:
    """Return the pixel mean and deviation that a model expects, under the names of torchvision's detectors."""
    cfg = resolve_data_config(model=body)
    return {"image_mean": list(cfg["mean"]), "image_std": list(cfg["std"])}


def _feature_info(body: nn.Module) -> Any:
    return cast(Any, body).feature_info
