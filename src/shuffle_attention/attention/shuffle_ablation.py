"""Shuffle attention with parts removed or replaced, as in the ablation studies of its paper."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import InputError
from .spec import check_groups

GATES = ("affine", "conv1x1", "none")


class ShuffleAttentionAblation(nn.Module):
    """Shuffle attention with optional parts, in plain PyTorch: for experiments, not for speed.

    With its defaults it computes what :class:`ShuffleAttention` computes, with the same entries in its state dict, in
    several passes over the map. The fused op at the end of a block does not run it.

    With n = channels / (2 * groups), s the statistic of a branch (the means of its planes in the channel
    branch, its normalised planes in the spatial one) and F what turns it into a gate sigmoid(F(s)):

    Args:
        channels: Number of channels of the map.
        groups: Number of groups that the channels are split into; the paper compares 8, 16, 32, 64 and 128.
        eps: Added to the variance of a plane.
        norm: Whether the spatial branch normalises its planes (the paper's GroupNorm, 2 n parameters); without,
            the statistic is the plane itself.
        gate: F. ``"affine"`` is a weight and a bias for each of the n channels (4 n parameters in the two
            branches). ``"conv1x1"`` is a 1x1 convolution over them (2 n (n + 1) parameters), shared by the groups like
            the affine, with zero weights and hence the same gates at its start. ``"none"`` is the identity.
        shuffle: Whether to interleave the two halves of the channels at the end.
        device: Device of the parameters.
        dtype: Type of the parameters; the map may have another.

    Shape:
        (B, channels, *spatial), one to three spatial dimensions, to the same shape, type and memory format.

    Raises:
        InputError: If ``2 * groups`` does not divide ``channels``, or there is no such gate, at construction; if a
            map has another number of channels, when called.

    Source: Zhang & Yang, arXiv:2102.00240, section 4 (ablation studies).
    """

    cweight: nn.Parameter
    cbias: nn.Parameter
    sweight: nn.Parameter
    sbias: nn.Parameter

    def __init__(
        self,
        channels: int,
        groups: int = 64,
        *,
        eps: float = 1e-5,
        norm: bool = True,
        gate: Literal["affine", "conv1x1", "none"] = "affine",
        shuffle: bool = True,
        device=None,
        dtype=None,
    ):
        super().__init__()
        if gate not in GATES:
            raise InputError(f"gate must be one of {', '.join(GATES)}, got {gate!r}")
        check_groups(channels, groups)
        self.channels = channels
        self.groups = groups
        self.eps = eps
        self.gate = gate
        self.shuffle = shuffle
        n = channels // (2 * groups)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        for branch in "cs" if gate != "none" else "":
            inputs = n if gate == "conv1x1" else 1
            self.register_parameter(f"{branch}weight", nn.Parameter(torch.empty(inputs, n, 1, 1, **factory)))
            self.register_parameter(f"{branch}bias", nn.Parameter(torch.empty(1, n, 1, 1, **factory)))
        self.gn = nn.GroupNorm(n, n, eps=eps, **factory) if norm else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set every gate that has a bias to sigmoid(1), as published."""
        for name, parameter in self.named_parameters(recurse=False):
            nn.init.constant_(parameter, 1.0 if name.endswith("bias") else 0.0)
        if self.gn is not None:
            self.gn.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() not in (3, 4, 5) or x.shape[1] != self.channels:
            raise InputError(f"a map must have the shape (B, {self.channels}, *spatial), got {tuple(x.shape)}")
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        # Autocast would compute the matrix products in half precision.
        with torch.autocast(x.device.type, enabled=False):
            channel, spatial = x.to(dtype).flatten(2).unflatten(1, (self.groups, 2, -1)).unbind(2)
            y = torch.stack(
                [
                    channel * torch.sigmoid(self._transformed("c", channel.mean(-1, keepdim=True))),
                    spatial * torch.sigmoid(self._transformed("s", self._normalised(spatial))),
                ],
                dim=2,
            ).flatten(1, 3)
        if self.shuffle:
            y = y.unflatten(1, (2, -1)).transpose(1, 2)
        return torch.empty_like(x).copy_(y.reshape(x.shape))

    def _normalised(self, x: Tensor) -> Tensor:
        """Normalise the planes of ``x``, (B, groups, n, plane), and apply the affine of each."""
        if self.gn is None:
            return x
        centred = x - x.mean(-1, keepdim=True)
        xhat = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.eps)
        return self.gn.weight.to(x.dtype).unsqueeze(-1) * xhat + self.gn.bias.to(x.dtype).unsqueeze(-1)

    def _transformed(self, branch: str, s: Tensor) -> Tensor:
        """Apply F to a statistic, (B, groups, n, positions)."""
        if self.gate == "none":
            return s
        weight = getattr(self, f"{branch}weight").to(s.dtype).flatten(1)
        bias = getattr(self, f"{branch}bias").to(s.dtype).view(-1, 1)
        return (weight @ s if self.gate == "conv1x1" else weight.view(-1, 1) * s) + bias

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, groups={self.groups}, norm={self.gn is not None}, gate={self.gate!r}, "
            f"shuffle={self.shuffle}"
        )
