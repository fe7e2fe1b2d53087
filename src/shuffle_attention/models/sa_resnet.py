"""SA-ResNets, registered with timm: importing this module makes ``timm.create_model("sa_resnet50")`` work.

The networks are timm's ResNet with blocks that end in shuffle attention; what timm gives a ResNet
(``num_classes``, ``in_chans``, ``features_only``, ``drop_path_rate``, gradient checkpointing, saving
to the Hugging Face Hub and so on) holds for them. State-dict keys are those of the published network.

Sources: Zhang & Yang, SA-Net, arXiv:2102.00240, section 4; He et al., ResNet, arXiv:1512.03385.
"""

from collections.abc import Mapping
from typing import Any, cast

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import (
    ResNet,
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    resolve_pretrained_cfg,
)
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from ..attention import ShuffleAttention, create_attention, gate_names
from ..attention.spec import largest_groups
from ..errors import InputError
from .fused_block import block_tail, can_fuse

__all__ = ["SABasicBlock", "SABottleneck", "SAResNet", "small_input_stem"]


class SABasicBlock(BasicBlock):
    """timm's basic block with shuffle attention before the addition; its arguments, and those of the attention."""

    aa: nn.Module
    downsample: nn.Module | None
    drop_path: nn.Module | None

    def __init__(
        self,
        inplanes: int,
        planes: int,
        *args,
        groups: int = 64,
        attention_options: Mapping[str, Any] | None = None,
        device=None,
        dtype=None,
        **kwargs,
    ):
        super().__init__(inplanes, planes, *args, device=device, dtype=dtype, **kwargs)
        self.sa = _attention(planes * self.expansion, groups, attention_options, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = self.aa(self.act1(self.drop_block(self.bn1(self.conv1(x)))))
        return _join(self, self.conv2(y), x, self.bn2, self.act2)


class SABottleneck(Bottleneck):
    """timm's bottleneck with shuffle attention before the addition; its arguments, and those of the attention."""

    aa: nn.Module
    downsample: nn.Module | None
    drop_path: nn.Module | None

    def __init__(
        self,
        inplanes: int,
        planes: int,
        *args,
        groups: int = 64,
        attention_options: Mapping[str, Any] | None = None,
        device=None,
        dtype=None,
        **kwargs,
    ):
        super().__init__(inplanes, planes, *args, device=device, dtype=dtype, **kwargs)
        self.sa = _attention(planes * self.expansion, groups, attention_options, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.aa(self.act2(self.drop_block(self.bn2(self.conv2(y)))))
        return _join(self, self.conv3(y), x, self.bn3, self.act3)


def _attention(channels: int, groups: int, options: Mapping[str, Any] | None, **factory) -> nn.Module:
    """Attention over as many groups as asked for, or as many as the channels of a narrow stage allow."""
    return create_attention("shuffle", channels, groups=largest_groups(channels, groups), **(options or {}), **factory)


def _join(block: SABasicBlock | SABottleneck, u: Tensor, x: Tensor, norm: nn.Module, act: nn.Module) -> Tensor:
    """The end of a block: norm and attention on the residual branch, addition of the shortcut, activation."""
    shortcut = x if block.downsample is None else block.downsample(x)
    if can_fuse(u, shortcut, norm, block.sa, act, block.drop_path):
        return block_tail(u, shortcut, cast(nn.BatchNorm2d, norm), cast(ShuffleAttention, block.sa))
    y = block.sa(norm(u))
    if block.drop_path is not None:
        y = block.drop_path(y)
    return act(y + shortcut)  # not in place: a backward hook on the attention forbids it


class SAResNet(ResNet):
    """timm's ResNet, which also tells optimisers that the gates are as little to be decayed as a norm's affine."""

    def no_weight_decay(self) -> set[str]:
        return gate_names(self)


def small_input_stem(model: nn.Module) -> None:
    """Gives a timm or torchvision ResNet the stem for images of at most 64 pixels, in place.

    The 7x7 convolution of stride 2 becomes a 3x3 one of stride 1 and the max pooling goes, as in the
    networks that He et al. (arXiv:1512.03385, section 4.2) train on CIFAR-10. Call it before training
    or loading weights: the new convolution is initialised afresh.

    Raises:
        InputError: If the model has no ``conv1`` and ``maxpool`` of that kind.
    """
    conv = getattr(model, "conv1", None)
    if not isinstance(conv, nn.Conv2d) or not isinstance(getattr(model, "maxpool", None), nn.MaxPool2d):
        raise InputError(
            f"a small-input stem replaces a convolution 'conv1' and a max pooling 'maxpool'; "
            f"{type(model).__name__} does not have both"
        )
    model.conv1 = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        3,
        padding=1,
        bias=False,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()


DEFAULT_CFG = {
    "url": "",
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "crop_pct": 0.875,
    "interpolation": "bilinear",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "first_conv": "conv1",
    "classifier": "fc",
}
# Blocks of each stage, by depth: He et al., table 1. The first two have basic blocks, the others bottlenecks.
STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
default_cfgs = generate_default_cfgs({f"sa_resnet{depth}": DEFAULT_CFG for depth in STAGES})


def _create(
    depth: int,
    pretrained: bool,
    *,
    groups: int = 64,
    attention_options: Mapping[str, Any] | None = None,
    zero_init_last: bool = False,
    **kwargs,
) -> SAResNet:
    """Builds a network by depth; the last norm of a branch starts at 1 as published, at 0 as timm's on request."""
    variant = f"sa_resnet{depth}"
    if pretrained:
        require_weights(variant, kwargs)
    attention = {"groups": groups, "attention_options": attention_options}
    return build_model_with_cfg(
        SAResNet,
        variant,
        pretrained,
        block=SABasicBlock if depth < 50 else SABottleneck,
        layers=STAGES[depth],
        block_args={**attention, **(kwargs.pop("block_args", None) or {})},
        zero_init_last=zero_init_last,
        **kwargs,
    )


def require_weights(variant: str, kwargs: Mapping[str, Any]) -> None:
    """Refuses ``pretrained=True`` where neither this package nor the caller names a file of weights.

    Raises:
        InputError: If there are no weights.
    """
    source = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay"))
    if not (source.has_weights or source.state_dict):
        raise InputError(
            f"pretrained=True: no weights of {variant} are published under a licence that allows shipping them. "
            f"For a file of your own: shuffle_attention.load_checkpoint(model, path), or "
            f"timm.create_model('{variant}', pretrained=True, pretrained_cfg_overlay=dict(file=path))"
        )


@register_model
def sa_resnet18(pretrained: bool = False, **kwargs) -> SAResNet:
    """SA-ResNet-18: basic blocks, 11.7 M parameters; 32 groups in its 64-channel stage."""
    return _create(18, pretrained, **kwargs)


@register_model
def sa_resnet34(pretrained: bool = False, **kwargs) -> SAResNet:
    """SA-ResNet-34: basic blocks, 21.8 M parameters; 32 groups in its 64-channel stage."""
    return _create(34, pretrained, **kwargs)


@register_model
def sa_resnet50(pretrained: bool = False, **kwargs) -> SAResNet:
    """SA-ResNet-50 of the paper: 25,557,740 parameters, 708 of them attention."""
    return _create(50, pretrained, **kwargs)


@register_model
def sa_resnet101(pretrained: bool = False, **kwargs) -> SAResNet:
    """SA-ResNet-101 of the paper: 44,550,684 parameters, 1,524 of them attention."""
    return _create(101, pretrained, **kwargs)


@register_model
def sa_resnet152(pretrained: bool = False, **kwargs) -> SAResNet:
    """SA-ResNet-152: bottlenecks, 60.2 M parameters."""
    return _create(152, pretrained, **kwargs)
