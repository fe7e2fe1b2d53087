"""ResNets with every attention of the family, registered with timm: ``timm.create_model("sge_resnet50")``.

timm's ResNet with a layer of :func:`create_attention` where timm puts its own, after the last norm of the residual
branch and before the addition. The plain ResNets and SE-ResNet-50, 101 and 152 are timm's own, the SA-ResNets are
those of :mod:`.models`; :func:`resnet_with` tells the name of each. Not timm's: its ``ecaresnet50d``, ``50t`` and
``gcresnet50t`` have other stems and shortcuts, its ``seresnet18`` and ``34`` a wider bottleneck in their first stage.

Sources: those of :func:`create_attention`; He et al., ResNet, arXiv:1512.03385.
"""

import functools
from collections.abc import Mapping
from typing import Any

from timm.models import ResNet, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck

from ..attention import attention_names, create_attention, gate_names, get_spec
from ..errors import unknown
from .sa_resnet import DEFAULT_CFG, STAGES, require_weights

__all__ = ["AttentionResNet", "resnet_with"]


def resnet_with(attention: str, depth: int) -> tuple[str, dict[str, Any]]:
    """Returns the name under which timm has a ResNet with an attention, and what to create it with.

    Networks created so differ in their attention alone: the same stem, blocks and initialisation, with the last
    norm of every branch at 1, where ``timm.create_model("resnet50")`` alone would have it at 0.

    Raises:
        InputError: If there is no such attention, or no ResNet of that depth.

    Example:
        >>> name, options = resnet_with("none", 50)
        >>> model = timm.create_model(name, **options)
    """
    if attention not in attention_names():
        raise unknown("attention", attention, attention_names())
    if depth not in STAGES:
        raise unknown("ResNet of depth", depth, map(str, STAGES))
    prefix = {"none": "", "shuffle": "sa_", "se": "se" if depth >= 50 else "se_"}.get(attention, f"{attention}_")
    return f"{prefix}resnet{depth}", {"zero_init_last": False}


class AttentionResNet(ResNet):
    """timm's ResNet whose blocks have an attention of the family.

    Args:
        attention: One of :func:`attention_names`.
        attention_options: Options of that attention.
        block: timm's block.
        layers: Number of blocks in each stage.
        block_args: Further arguments of the block.
        **kwargs: Arguments of timm's ResNet.
    """

    def __init__(
        self,
        attention: str,
        attention_options: Mapping[str, Any] | None,
        block: Any,
        layers: tuple[int, ...],
        block_args: Mapping[str, Any] | None = None,
        **kwargs,
    ):
        self.attention = attention
        layer = functools.partial(create_attention, attention, **(attention_options or {}))
        super().__init__(block, layers, block_args={**(block_args or {}), "attn_layer": layer}, **kwargs)

    def init_weights(self, zero_init_last: bool = True) -> None:
        super().init_weights(zero_init_last)
        for module in self.modules():
            if isinstance(module, BasicBlock | Bottleneck):
                get_spec(self.attention).published_start(module.se)

    def no_weight_decay(self) -> set[str]:
        return gate_names(self)


def _create(
    attention: str,
    depth: int,
    pretrained: bool = False,
    *,
    attention_options: Mapping[str, Any] | None = None,
    zero_init_last: bool = False,
    **kwargs,
) -> AttentionResNet:
    variant = f"{attention}_resnet{depth}"
    if attention == "sge":  # as for shuffle attention: in a narrow stage as many groups as fit
        attention_options = {"groups": "auto", **(attention_options or {})}
    if pretrained:
        require_weights(variant, kwargs)
    return build_model_with_cfg(
        AttentionResNet,
        variant,
        pretrained,
        attention=attention,
        attention_options=attention_options,
        block=BasicBlock if depth < 50 else Bottleneck,
        layers=STAGES[depth],
        zero_init_last=zero_init_last,
        **kwargs,
    )


_NETWORKS = [(attention, depth) for attention in ("cbam", "sge", "eca", "gc") for depth in STAGES]
_NETWORKS += [("se", 18), ("se", 34)]
default_cfgs = generate_default_cfgs({f"{attention}_resnet{depth}": DEFAULT_CFG for attention, depth in _NETWORKS})


def _register(attention: str, depth: int) -> None:
    def entrypoint(pretrained: bool = False, **kwargs) -> AttentionResNet:
        return _create(attention, depth, pretrained, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = f"{attention}_resnet{depth}"
    entrypoint.__doc__ = f"ResNet-{depth} with the attention {attention!r} in every block."
    globals()[entrypoint.__name__] = register_model(entrypoint)


for _attention, _depth in _NETWORKS:
    _register(_attention, _depth)
