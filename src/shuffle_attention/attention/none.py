"""The absence of attention, as the baseline of comparisons."""

from typing import Any

from torch import nn

from .spec import AttentionSpec


def build(channels: int, *, device: Any = None, dtype: Any = None) -> nn.Module:
    """Return the identity."""
    return nn.Identity()


SPEC = AttentionSpec(
    name="none", build=build, identity=lambda layer, **options: layer, resnet="resnet{}".format, parameters="0"
)
