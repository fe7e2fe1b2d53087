"""ResNets with any attention, registered with timm: ``timm.create_model("sge_resnet50")``.

timm's ResNet with a layer of :func:`create_attention` where timm puts its own, after the last norm of the residual
branch and before the addition. ``attention_resnet50`` takes any attention: ``attention="se"``, a registered name or a
callable. :func:`resnet_with` returns the name of the ResNet for an attention. Some of these are timm's own models, but
not its ``ecaresnet50d``, ``ecaresnet50t`` and ``gcresnet50t``, which have other stems and shortcuts, nor its
``seresnet18`` and ``seresnet34``, which have a wider bottleneck in their first stage.

Sources: He et al., ResNet, arXiv:1512.03385; of the layers, see docs/networks.md.
"""

import copy
import functools
from collections.abc import Mapping
from typing import Any

from timm.models import ResNet, is_model
from timm.models.resnet import BasicBlock, Bottleneck

from ..attention import attention_names, create_attention, gate_names, get_spec
from ..attention.spec import Attention
from ..errors import unknown
from .sa_resnet import STAGES, build_resnet, plain_cfgs, register, small_input_stem

__all__ = ["AttentionResNet", "resnet_with"]


def resnet_with(attention: Attention, depth: int) -> tuple[str, dict[str, Any]]:
    """Return timm's name of the ResNet with an attention, and the arguments to create it with.

    Models created so differ in their attention alone: the same stem, blocks and initialisation, with the last norm of
    every branch at 1, whereas ``timm.create_model("resnet50")`` alone starts it at 0.

    Args:
        attention: What :func:`create_attention` accepts.
        depth: 18, 34, 50, 101 or 152.

    Raises:
        InputError: If there is no such attention, or no ResNet of that depth.

    Example:
        >>> name, options = resnet_with("none", 50)
        >>> model = timm.create_model(name, **options)
    """
    spec = get_spec(attention)
    if depth not in STAGES:
        raise unknown("ResNet of depth", depth, map(str, STAGES))
    if spec.resnet is not None:
        return spec.resnet(depth), {"zero_init_last": False}
    known = spec.name in attention_names() and get_spec(spec.name) is spec
    return f"attention_resnet{depth}", {"attention": spec.name if known else spec, "zero_init_last": False}


class AttentionResNet(ResNet):
    """timm's ResNet with an attention in every block.

    Args:
        attention: What :func:`create_attention` accepts.
        attention_options: Options of the attention.
        block: timm's block.
        layers: Number of blocks in each stage.
        block_args: Further arguments of the block.
        small_stem: Whether it has the stem for images of at most 64 pixels.
        **kwargs: Arguments of timm's ResNet.
    """

    def __init__(
        self,
        attention: Attention,
        attention_options: Mapping[str, Any] | None,
        block: Any,
        layers: tuple[int, ...],
        block_args: Mapping[str, Any] | None = None,
        small_stem: bool = False,
        **kwargs: Any,
    ):
        self.attention = attention
        layer = functools.partial(create_attention, attention, **(attention_options or {}))
        super().__init__(block, layers, block_args={**(block_args or {}), "attn_layer": layer}, **kwargs)
        if small_stem:
            small_input_stem(self)

    def init_weights(self, zero_init_last: bool = True) -> None:
        """Initialise as timm does, which includes all convolutions, and give the attention its published start."""
        start = get_spec(self.attention).published_start
        layers: list[Any] = [module.se for module in self.modules() if isinstance(module, BasicBlock | Bottleneck)]
        before = [copy.deepcopy(layer.state_dict()) for layer in layers]
        super().init_weights(zero_init_last)
        for layer, state in zip(layers, before, strict=True):
            if start is None:
                layer.load_state_dict(state)
            else:
                start(layer)

    def no_weight_decay(self) -> set[str]:
        return gate_names(self)


def _create(
    name: str,
    depth: int,
    pretrained: bool,
    *,
    attention: Attention,
    attention_options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> AttentionResNet:
    if get_spec(attention).group_parts is not None:  # a narrow stage has as many groups as fit
        attention_options = {"groups": "auto", **(attention_options or {})}
    own = {"attention": attention, "attention_options": attention_options}
    return build_resnet(AttentionResNet, name, depth, pretrained, (BasicBlock, Bottleneck), **own, **kwargs)


for _depth in STAGES:
    _name = f"attention_resnet{_depth}"
    _make, _cfgs = functools.partial(_create, _name, _depth), plain_cfgs(_depth)
    register(_name, _make, f"ResNet-{_depth} with any attention in every block.", _cfgs)
    for _spec in map(get_spec, attention_names()):
        _name = "" if _spec.resnet is None else _spec.resnet(_depth)
        if _name and not is_model(_name):
            _make = functools.partial(_create, _name, _depth, attention=_spec.name)
            register(_name, _make, f"ResNet-{_depth} with the attention {_spec.name!r} in every block.", _cfgs)
