"""Spatial group-wise enhancement."""

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .spec import AttentionSpec, check_groups

torch.fx.wrap("spatial_group_enhance")  # one call in a traced graph: its checks read shapes, which a tracer lacks


class SpatialGroupEnhance(nn.Module):
    """Spatial group-wise enhancement: within each group, a gate on the positions that resemble the group's mean.

    With t_i the inner product of the group's mean over the plane with its channels at position i, and m and s the
    mean and the deviation of t over the plane, the gate at i is sigmoid(weight * (t_i - m) / (s + eps) + bias).
    At its start every gate is sigmoid(1). It has ``2 * groups`` parameters, under the names and in the shapes
    of the published model: ``weight`` and ``bias`` of shape (1, groups, 1, 1).

    For maps in half precision the products are computed and normalised in float32: those of a large map exceed the
    range of float16, which makes the output of the published code NaN. The deviation is that of the published code,
    with m - 1 in the denominator for m positions; if m is 1, where it has no value, the gate is sigmoid(bias).

    Args:
        channels: Number of channels of the map.
        groups: Number of groups that the channels are split into; must divide ``channels``.
        eps: Added to the deviation of the products of a group.
        device: Device of the parameters.
        dtype: Type of the parameters; the map may have another.

    Shape:
        (B, channels, H, W) to the same shape, type and memory format.

    Raises:
        InputError: If ``groups`` does not divide ``channels``, at construction; if it does not divide the
            channels of a map or the map has other dimensions, when called.

    Source: Li, Hu & Yang, Spatial Group-wise Enhance, arXiv:1905.09646, section 3; parameters, their start and
    the deviation from the code published with it.
    """

    def __init__(self, channels: int, groups: int = 64, *, eps: float = 1e-5, device=None, dtype=None):
        super().__init__()
        check_groups(channels, groups, parts=1)
        self.channels = channels
        self.groups = groups
        self.eps = eps
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(1, groups, 1, 1, **factory))
        self.bias = nn.Parameter(torch.empty(1, groups, 1, 1, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set every gate to sigmoid(1), as published."""
        nn.init.zeros_(self.weight)
        nn.init.ones_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return spatial_group_enhance(x, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.channels}, groups={self.groups}"


def spatial_group_enhance(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Return the enhanced map: the functional form of :class:`SpatialGroupEnhance`."""
    gate = spatial_gate(x, weight, bias, eps)
    return (x.unflatten(1, (weight.numel(), -1)) * gate.unsqueeze(2).to(x.dtype)).flatten(1, 2)


def spatial_gate(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return the gates of each group, (B, groups, H, W), in float32, or in float64 for a map in float64."""
    groups = weight.numel()
    if x.dim() != 4 or x.shape[1] % groups:
        raise InputError(f"a map must have the shape (B, multiple of {groups} groups, H, W), got {tuple(x.shape)}")
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    exact = x.unflatten(1, (groups, -1)).to(dtype)
    # Not a matrix product: autocast would compute it in half precision.
    t = (exact * exact.mean((3, 4), keepdim=True)).sum(2)
    t = t - t.mean((2, 3), keepdim=True)
    # The norm, unlike a square root, has a gradient where a map is flat.
    deviation = torch.linalg.vector_norm(t, dim=(2, 3), keepdim=True) / max(t.shape[2] * t.shape[3] - 1, 1) ** 0.5
    return torch.sigmoid(t / (deviation + eps) * weight.to(dtype) + bias.to(dtype))


def factors(layer: Any, x: Tensor) -> Tensor:
    """Return the gate of each value."""
    gate = spatial_gate(x, layer.weight, layer.bias, layer.eps)
    return gate.repeat_interleave(layer.channels // layer.groups, 1)


SPEC = AttentionSpec(
    name="sge",
    build=SpatialGroupEnhance,
    group_parts=1,
    decays=False,
    factors=factors,
    resnet="sge_resnet{}".format,
    parameters="2 groups",
    notes="64 groups, or as many as fit; gates start at sigmoid(1)",
    source="Li et al., section 3",
    arxiv="1905.09646",
)
