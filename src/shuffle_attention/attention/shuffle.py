"""Attention layers as modules."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..kernels import shuffle_attention

# One call each in a traced graph, as a layer of PyTorch's own is: their checks read shapes, which a tracer has not.
torch.fx.wrap("shuffle_attention")
torch.fx.wrap("spatial_group_enhance")


def fitting_groups(channels: int, parts: int = 2) -> list[int]:
    """Returns every number of groups that ``channels`` can be split into, in rising order.

    Args:
        channels: Channels of the map.
        parts: Parts that each group is split into in turn: two branches in shuffle attention, which therefore
            needs a multiple of ``2 * groups`` channels; one in spatial group-wise enhancement.
    """
    return [g for g in range(1, channels // parts + 1) if channels % (parts * g) == 0]


def largest_groups(channels: int, at_most: int = 64, parts: int = 2) -> int:
    """Returns the largest number of groups up to ``at_most`` that :func:`fitting_groups` lists.

    Raises:
        InputError: If none fits.
    """
    if at_most < 1:
        raise InputError(f"groups must be at least 1, got {at_most}")
    fitting = [g for g in fitting_groups(channels, parts) if g <= at_most]
    if not fitting:
        raise InputError(f"channels must be a positive multiple of {parts}, got channels={channels}")
    return fitting[-1]


class ShuffleAttention(nn.Module):
    """Shuffle attention: a channel gate on one half of each group, a spatial gate on the other, then a shuffle.

    At its start every gate is sigmoid(1): the layer scales the map by 0.731 and permutes its channels.
    It has ``3 * channels / groups`` parameters, under the names and in the shapes of the published
    network: ``cweight, cbias, sweight, sbias`` of shape (1, n, 1, 1) and ``gn.weight, gn.bias`` of
    shape (n,), with ``n = channels / (2 * groups)``.

    Args:
        channels: Channels of the map.
        groups: Groups that the channels are split into; ``2 * groups`` must divide ``channels``.
        eps: Added to the variance of a plane.
        shuffle: Whether the two halves of the channels are interleaved at the end.
        device: Where the parameters are made.
        dtype: Type of the parameters; the map may have another.

    Shape:
        (B, channels, *spatial), one to three spatial dimensions, to the same shape, type and memory format.

    Raises:
        InputError: If ``2 * groups`` does not divide ``channels``, at construction; if a map has another
            number of channels, when called (a ``ValueError``).

    Source: Zhang & Yang, SA-Net, ICASSP 2021, arXiv:2102.00240, section 3.

    Example:
        >>> attention = ShuffleAttention(256)
        >>> attention(torch.randn(8, 256, 14, 14)).shape
        torch.Size([8, 256, 14, 14])
    """

    def __init__(
        self, channels: int, groups: int = 64, *, eps: float = 1e-5, shuffle: bool = True, device=None, dtype=None
    ):
        super().__init__()
        check_groups(channels, groups)
        self.channels = channels
        self.groups = groups
        self.shuffle = shuffle
        n = channels // (2 * groups)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.cweight = nn.Parameter(torch.empty(1, n, 1, 1, **factory))
        self.cbias = nn.Parameter(torch.empty(1, n, 1, 1, **factory))
        self.sweight = nn.Parameter(torch.empty(1, n, 1, 1, **factory))
        self.sbias = nn.Parameter(torch.empty(1, n, 1, 1, **factory))
        # Holds the published names; the normalisation is part of the op, so that this module is never called.
        self.gn = nn.GroupNorm(n, n, eps=eps, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets every gate to sigmoid(1), as published."""
        for weight in (self.cweight, self.sweight):
            nn.init.zeros_(weight)
        for bias in (self.cbias, self.sbias):
            nn.init.ones_(bias)
        self.gn.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        eps = cast(nn.GroupNorm, self._modules["gn"]).eps
        return shuffle_attention(x, *self.op_parameters(), groups=self.groups, eps=eps, shuffle=self.shuffle)

    def op_parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Returns the six parameters in the order in which the op takes them."""
        try:
            # A module finds each of its attributes in Python, nine of them in six microseconds: as long as the op
            # takes to be called.
            own, norm = self._parameters, cast(nn.Module, self._modules["gn"])._parameters
            found = (own["cweight"], own["cbias"], own["sweight"], own["sbias"], norm["weight"], norm["bias"])
        except KeyError:  # parametrised, pruned or replicated, so that they are attributes and no parameters
            gn = self.gn
            found = (self.cweight, self.cbias, self.sweight, self.sbias, gn.weight, gn.bias)
        return cast(tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], found)

    def extra_repr(self) -> str:
        return f"{self.channels}, groups={self.groups}" + ("" if self.shuffle else ", shuffle=False")


class SpatialGroupEnhance(nn.Module):
    """Spatial group-wise enhancement: within each group, a gate on the places that resemble the group's mean.

    With t_i the inner product of the group's mean over the plane with its channels at place i, and m and s the
    mean and the deviation of t over the plane, the gate at i is sigmoid(weight * (t_i - m) / (s + eps) + bias).
    At its start every gate is sigmoid(1). It has ``2 * groups`` parameters, under the names and in the shapes
    of the published network: ``weight`` and ``bias`` of shape (1, groups, 1, 1).

    The products are taken and normalised in float32 for maps in half precision: those of a large map are above
    65504 and leave the range of float16, which in the published code makes the output NaN. The deviation is
    that of the published code, with m - 1 in the denominator for m places; where m is 1, and it has no value, the
    gate is sigmoid(bias).

    Args:
        channels: Channels of the map.
        groups: Groups that the channels are split into; must divide ``channels``.
        eps: Added to the deviation of the products of a group.
        device: Where the parameters are made.
        dtype: Type of the parameters; the map may have another.

    Shape:
        (B, channels, H, W) to the same shape, type and memory format.

    Raises:
        InputError: If ``groups`` does not divide ``channels``, at construction; if a map has channels that it does
            not divide or other dimensions, when called.

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
        """Sets every gate to sigmoid(1), as published."""
        nn.init.zeros_(self.weight)
        nn.init.ones_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return spatial_group_enhance(x, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.channels}, groups={self.groups}"


def spatial_group_enhance(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Returns the enhanced map: the functional form of :class:`SpatialGroupEnhance`."""
    groups = weight.numel()
    if x.dim() != 4 or x.shape[1] % groups:
        raise InputError(f"a map must have the shape (B, multiple of {groups} groups, H, W), got {tuple(x.shape)}")
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    grouped = x.unflatten(1, (groups, -1))
    exact = grouped.to(dtype)
    # Not a matrix product: autocast would take that back to half precision.
    t = (exact * exact.mean((3, 4), keepdim=True)).sum(2)
    t = t - t.mean((2, 3), keepdim=True)
    # The norm, unlike a square root, has a gradient where a map is flat.
    deviation = torch.linalg.vector_norm(t, dim=(2, 3), keepdim=True) / max(t.shape[2] * t.shape[3] - 1, 1) ** 0.5
    gate = torch.sigmoid(t / (deviation + eps) * weight.to(dtype) + bias.to(dtype))
    return (grouped * gate.unsqueeze(2).to(x.dtype)).flatten(1, 2)


def check_groups(channels: int, groups: int, parts: int = 2) -> None:
    """Refuses a number of groups that :func:`fitting_groups` does not list, and names those next to it."""
    if channels < parts or channels % parts:
        kind = "positive even number" if parts == 2 else "positive number"
        raise InputError(f"channels must be a {kind}, got channels={channels}")
    if groups < 1 or channels % (parts * groups):
        fitting = fitting_groups(channels, parts)
        below = [g for g in fitting if g < groups][-1:]
        above = [g for g in fitting if g > groups][:1]
        multiple = "2 * groups" if parts == 2 else "groups"
        raise InputError(
            f"channels must be a multiple of {multiple}, got channels={channels} and groups={groups}; "
            f"the nearest groups that fit: {' and '.join(map(str, below + above))}"
        )
