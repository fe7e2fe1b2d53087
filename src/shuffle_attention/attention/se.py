"""Squeeze-and-excitation, timm's layer."""

from .spec import AttentionSpec
from .timm_layers import from_timm, product_of_gates, start_of_model


def resnet_name(depth: int) -> str:
    """Return the name of a ResNet with SE; timm's own with fewer than 50 layers differ from the paper's."""
    return f"seresnet{depth}" if depth >= 50 else f"se_resnet{depth}"


SPEC = AttentionSpec(
    name="se",
    build=from_timm("se"),
    options=("rd_ratio", "rd_channels", "rd_divisor", "add_maxpool", "bias", "act_layer", "norm_layer", "gate_layer"),
    defaults={"rd_divisor": 1},
    published_start=start_of_model,
    factors=product_of_gates,
    classes=("timm.layers.squeeze_excite.SEModule",),
    resnet=resnet_name,
    parameters="2 C h + h + C, h = C/16",
    notes="C/16 hidden channels, where timm rounds up to a multiple of 8; biases, as in the published models",
    source="Hu et al., section 3",
    arxiv="1709.01507",
)
