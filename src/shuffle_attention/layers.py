"""Attention layers as modules."""

from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError
from .ops import shuffle_attention

# One call in a traced graph, as a layer of PyTorch's own is: its checks read shapes, which a tracer has not.
torch.fx.wrap("shuffle_attention")


def fitting_groups(channels: int) -> list[int]:
    """Returns every number of groups that shuffle attention over ``channels`` can have, in rising order.

    Each group is split into two branches, so that ``channels`` must be a multiple of ``2 * groups``.
    """
    return [g for g in range(1, channels // 2 + 1) if channels % (2 * g) == 0]


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
        _check_groups(channels, groups)
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
        return shuffle_attention(
            x,
            self.cweight,
            self.cbias,
            self.sweight,
            self.sbias,
            self.gn.weight,
            self.gn.bias,
            groups=self.groups,
            eps=self.gn.eps,
            shuffle=self.shuffle,
        )

    def extra_repr(self) -> str:
        return f"{self.channels}, groups={self.groups}" + ("" if self.shuffle else ", shuffle=False")


def _check_groups(channels: int, groups: int) -> None:
    if channels < 2 or channels % 2:
        raise InputError(f"channels must be a positive even number, got channels={channels}")
    if groups < 1 or channels % (2 * groups):
        fitting = fitting_groups(channels)
        below = [g for g in fitting if g < groups][-1:]
        above = [g for g in fitting if g > groups][:1]
        raise InputError(
            f"channels must be a multiple of 2 * groups, got channels={channels} and groups={groups}; "
            f"the nearest groups that fit: {' and '.join(map(str, below + above))}"
        )
