"""Global context, timm's layer."""

from typing import Any

from torch import nn

from .spec import AttentionSpec
from .timm_layers import from_timm


def published_start(module: Any) -> None:
    """Start the added context at zero, so that the layer is the identity if it only adds."""
    module.reset_parameters()
    if module.mlp_add is not None:
        nn.init.zeros_(module.mlp_add.fc2.bias)


def identity(layer: Any, **options: Any) -> nn.Module | None:
    """Return the layer, whose published start is the identity unless it also scales the map."""
    return None if layer.mlp_scale is not None else layer


SPEC = AttentionSpec(
    name="gc",
    build=from_timm("gc"),
    classes=("timm.layers.global_context.GlobalContext",),
    # All of timm's but init_last_zero, which it does not read.
    options=("use_attn", "fuse_add", "fuse_scale", "rd_ratio", "rd_channels", "rd_divisor", "act_layer", "gate_layer"),
    defaults={"rd_ratio": 1 / 16, "fuse_add": True, "fuse_scale": False},
    published_start=published_start,
    identity=identity,
    resnet="gc_resnet{}".format,
    parameters="2 C h + 3 h + 2 C + 1, h = C/16",
    notes="C/16 hidden channels, added to the map, where timm has C/8 and scales the map; starts as the identity",
    source="Cao et al., section 3",
    arxiv="1904.11492",
)
