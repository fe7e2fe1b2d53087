"""Convolutional block attention module, timm's layer."""

from typing import Any

from torch import nn

from .spec import AttentionSpec
from .timm_layers import from_timm, product_of_gates


def published_start(module: Any) -> None:
    """Start the spatial gate at one half, as the published code does."""
    nn.init.zeros_(module.spatial.conv.bn.weight)


SPEC = AttentionSpec(
    name="cbam",
    build=from_timm("cbam"),
    options=("rd_ratio", "rd_channels", "rd_divisor", "spatial_kernel_size", "act_layer", "gate_layer", "mlp_bias"),
    defaults={"mlp_bias": True},
    published_start=published_start,
    factors=product_of_gates,
    classes=("timm.layers.cbam.CbamModule",),
    resnet="cbam_resnet{}".format,
    parameters="2 C h + h + C + 100, h = C/16",
    notes="C/16 hidden channels, 7x7; biases in the MLP, which timm leaves out; the spatial gate starts at 1/2, where "
    "timm starts its BatchNorm at 1",
    source="Woo et al., section 3",
    arxiv="1807.06521",
)
