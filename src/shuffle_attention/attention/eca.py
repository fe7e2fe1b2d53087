"""Efficient channel attention, timm's layer."""

from typing import Any

from torch import nn

from ..errors import InputError
from .spec import AttentionSpec
from .timm_layers import from_timm, product_of_gates, start_of_model


def build(channels: int, **options: Any) -> nn.Module:
    """Return timm's layer; ``kernel_size`` replaces the size that follows from the channels."""
    size = options.get("kernel_size", 3)
    if size < 1 or size % 2 == 0:
        raise InputError(f"kernel_size must be a positive odd number, got {size}")
    # timm reads kernel_size only if it does not know the channels.
    known: Any = None if "kernel_size" in options else channels
    return from_timm("eca")(known, **options)


SPEC = AttentionSpec(
    name="eca",
    build=build,
    options=(
        *("kernel_size", "gamma", "beta", "act_layer"),
        *("gate_layer", "rd_ratio", "rd_channels", "rd_divisor", "use_mlp"),
    ),
    published_start=start_of_model,
    factors=product_of_gates,
    classes=("timm.layers.eca.EcaModule",),
    resnet="eca_resnet{}".format,
    parameters="k = (log2(C) + 1) / 2, rounded down and then up to an odd number, at least 3",
    notes="kernel 5, 5, 5, 7 in the stages of ResNet-50 by the paper's formula (its released weights have 3, 5, 5, 7 "
    "and 3, 3, 5, 7)",
    source="Wang et al., section 3",
    arxiv="1910.03151",
)
