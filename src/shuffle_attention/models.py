"""SA-ResNets, registered with timm: importing this module makes ``timm.create_model("sa_resnet50")`` work.

The networks are timm's ResNet with blocks that end in shuffle attention; what timm gives a ResNet
(``num_classes``, ``in_chans``, ``features_only``, ``drop_path_rate``, gradient checkpointing, saving
to the Hugging Face Hub and so on) holds for them. State-dict keys are those of the published network.

Sources: Zhang & Yang, SA-Net, arXiv:2102.00240, section 4; He et al., ResNet, arXiv:1512.03385.
"""

from typing import cast

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

from .errors import InputError
from .fusing import can_fuse
from .layers import ShuffleAttention, largest_groups
from .ops import block_tail

__all__ = ["SABasicBlock", "SABottleneck", "SAResNet", "small_input_stem"]


class SABasicBlock(BasicBlock):
    """timm's basic block with shuffle attention before the addition; arguments as there, and ``groups``."""

    aa: nn.Module
    downsample: nn.Module | None
    drop_path: nn.Module | None

    def __init__(self, inplanes: int, planes: int, *args, groups: int = 64, device=None, dtype=None, **kwargs):
        super().__init__(inplanes, planes, *args, device=device, dtype=dtype, **kwargs)
        self.sa = _attention(planes * self.expansion, groups, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = self.aa(self.act1(self.drop_block(self.bn1(self.conv1(x)))))
        return _join(self, self.conv2(y), x, self.bn2, self.act2)


class SABottleneck(Bottleneck):
    """timm's bottleneck with shuffle attention before the addition; arguments as there, and ``groups``."""

    aa: nn.Module
    downsample: nn.Module | None
    drop_path: nn.Module | None

    def __init__(self, inplanes: int, planes: int, *args, groups: int = 64, device=None, dtype=None, **kwargs):
        super().__init__(inplanes, planes, *args, device=device, dtype=dtype, **kwargs)
        self.sa = _attention(planes * self.expansion, groups, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.aa(self.act2(self.drop_block(self.bn2(self.conv2(y)))))
        return _join(self, self.conv3(y), x, self.bn3, self.act3)


def _attention(channels: int, groups: int, **factory) -> ShuffleAttention:
    """Attention over as many groups as asked for, or as many as the channels of a narrow stage allow."""
    return ShuffleAttention(channels, largest_groups(channels, groups), **factory)


def _join(block: SABasicBlock | SABottleneck, u: Tensor, x: Tensor, norm: nn.Module, act: nn.Module) -> Tensor:
    """The end of a block: norm and attention on the residual branch, addition of the shortcut, activation."""
    shortcut = x if block.downsample is None else block.downsample(x)
    if can_fuse(u, shortcut, norm, block.sa, act, block.drop_path):
        return block_tail(u, shortcut, cast(nn.BatchNorm2d, norm), block.sa)
    y = block.sa(norm(u))
    if block.drop_path is not None:
        y = block.drop_path(y)
    return act(y + shortcut)  # not in place: a backward hook on the attention forbids it


class SAResNet(ResNet):
    """timm's ResNet, which also tells optimisers that the gates are as little to be decayed as a norm's affine."""

    def no_weight_decay(self) -> set[str]:
        return {
            f"{name}.{parameter}"
            for name, module in self.named_modules()
            if isinstance(module, ShuffleAttention)
            for parameter, _ in module.named_parameters()
        }


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


_DEFAULTS = {
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
_LAYERS = {
    "sa_resnet18": (SABasicBlock, (2, 2, 2, 2)),
    "sa_resnet34": (SABasicBlock, (3, 4, 6, 3)),
    "sa_resnet50": (SABottleneck, (3, 4, 6, 3)),
    "sa_resnet101": (SABottleneck, (3, 4, 23, 3)),
    "sa_resnet152": (SABottleneck, (3, 8, 36, 3)),
}
default_cfgs = generate_default_cfgs(dict.fromkeys(_LAYERS, _DEFAULTS))


def _create(variant: str, pretrained: bool, *, groups: int = 64, zero_init_last: bool = False, **kwargs) -> SAResNet:
    """Builds a network by name; the last norm of a branch starts at 1 as published, at 0 as timm's on request."""
    if pretrained:
        source = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay"))
        if not (source.has_weights or source.state_dict):
            raise InputError(
                f"pretrained=True: no weights of {variant} are published under a licence that allows shipping them. "
                f"For a file of your own: shuffle_attention.load_checkpoint(model, path), or "
                f"timm.create_model('{variant}', pretrained=True, pretrained_cfg_overlay=dict(file=path))"
            )
    block, layers = _LAYERS[variant]
    block_args = {"groups": groups, **(kwargs.pop("block_args", None) or {})}
    model_args = {"block": block, "layers": layers, "block_args": block_args, "zero_init_last": zero_init_last}
    return build_model_with_cfg(SAResNet, variant, pretrained, **model_args, **kwargs)


@register_model
def sa_resnet18(pretrained: bool = False, **kwargs) -> SAResNet:
    """SA-ResNet-18: basic blocks, 11.7 M parameters; 32 groups in its 64-channel stage."""
    return _create("sa_resnet18", pretrained, **kwargs)


@register_model
def sa_resnet34(pretrained: bool = False, **kwargs) -> SAResNet:
    """SA-ResNet-34: basic blocks, 21.8 M parameters; 32 groups in its 64-channel stage."""
    return _create("sa_resnet34", pretrained, **kwargs)


@register_model
def sa_resnet50(pretrained: bool = False, **kwargs) -> SAResNet:
    """SA-ResNet-50 of the paper: 25,557,740 parameters, 708 of them attention."""
    return _create("sa_resnet50", pretrained, **kwargs)


@register_model
def sa_resnet101(pretrained: bool = False, **kwargs) -> SAResNet:
    """SA-ResNet-101 of the paper: 44,550,684 parameters, 1,524 of them attention."""
    return _create("sa_resnet101", pretrained, **kwargs)


@register_model
def sa_resnet152(pretrained: bool = False, **kwargs) -> SAResNet:
    """SA-ResNet-152: bottlenecks, 60.2 M parameters."""
    return _create("sa_resnet152", pretrained, **kwargs)
