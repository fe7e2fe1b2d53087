"""Shuffle attention."""

import copy
import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..kernels import reference, shuffle_attention
from .shuffle_ablation import ShuffleAttentionAblation
from .spec import AttentionSpec, check_groups

torch.fx.wrap("shuffle_attention")  # one call in a traced graph: its checks read shapes, which a tracer lacks

IDENTITY_GAIN = 1 + math.exp(-1)  # 1 / sigmoid(1)


class ShuffleAttention(nn.Module):
    """Shuffle attention: a channel gate on one half of each group, a spatial gate on the other, then a shuffle.

    At its start every gate is sigmoid(1): the layer scales the map by 0.731 and permutes its channels.
    It has ``3 * channels / groups`` parameters, under the names and in the shapes of the published
    model: ``cweight, cbias, sweight, sbias`` of shape (1, n, 1, 1) and ``gn.weight, gn.bias`` of
    shape (n,), with ``n = channels / (2 * groups)``.

    Args:
        channels: Number of channels of the map.
        groups: Number of groups that the channels are split into; ``2 * groups`` must divide ``channels``.
        eps: Added to the variance of a plane.
        shuffle: Whether to interleave the two halves of the channels at the end.
        gain: Factor of all gates. With 1 / sigmoid(1) and ``shuffle=False`` the layer starts as the identity. A gain
            other than 1 is an entry ``gain`` of the state dict, which loads into a layer of the same gain only.
        device: Device of the parameters.
        dtype: Type of the parameters; the map may have another.

    Shape:
        (B, channels, *spatial), one to three spatial dimensions, to the same shape, type and memory format.

    Raises:
        InputError: If ``2 * groups`` does not divide ``channels`` or ``gain`` is not a positive number, at
            construction; if a map has another number of channels, when called (a ``ValueError``).

    Source: Zhang & Yang, SA-Net, ICASSP 2021, arXiv:2102.00240, section 3.

    Example:
        >>> attention = ShuffleAttention(256)
        >>> attention(torch.randn(8, 256, 14, 14)).shape
        torch.Size([8, 256, 14, 14])
    """

    gain: Tensor | None
    gain_value = 1.0  # as a number, which the op takes; layers that were pickled by version 0.1 have only this one

    def __init__(
        self,
        channels: int,
        groups: int = 64,
        *,
        eps: float = 1e-5,
        shuffle: bool = True,
        gain: float = 1.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        check_groups(channels, groups)
        if not 0 < gain < math.inf:
            raise InputError(f"gain must be a positive number, got {gain}")
        self.channels = channels
        self.groups = groups
        self.shuffle = shuffle
        self.gain_value = float(gain)
        n = channels // (2 * groups)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.cweight = nn.Parameter(torch.empty(1, n, 1, 1, **factory))
        self.cbias = nn.Parameter(torch.empty(1, n, 1, 1, **factory))
        self.sweight = nn.Parameter(torch.empty(1, n, 1, 1, **factory))
        self.sbias = nn.Parameter(torch.empty(1, n, 1, 1, **factory))
        # Holds the published names; the op normalises, so this module is never called.
        self.gn = nn.GroupNorm(n, n, eps=eps, **factory)
        if gain != 1:
            self.register_buffer("gain", torch.empty((), **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set every gate to gain * sigmoid(1), as published."""
        for weight in (self.cweight, self.sweight):
            nn.init.zeros_(weight)
        for bias in (self.cbias, self.sbias):
            nn.init.ones_(bias)
        self.gn.reset_parameters()
        if self.gain_value != 1:
            nn.init.constant_(cast(Tensor, self.gain), self.gain_value)

    def forward(self, x: Tensor) -> Tensor:
        eps = cast(nn.GroupNorm, self._modules["gn"]).eps
        return shuffle_attention(
            x, *self.op_parameters(), groups=self.groups, eps=eps, shuffle=self.shuffle, gain=self.gain_value
        )

    def op_parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the six parameters in the order of the op's arguments."""
        try:
            # nn.Module looks up attributes in Python: nine of them take six microseconds, as long as calling the op.
            own, norm = self._parameters, cast(nn.Module, self._modules["gn"])._parameters
            six = (own["cweight"], own["cbias"], own["sweight"], own["sbias"], norm["weight"], norm["bias"])
        except KeyError:  # parametrised, pruned or replicated layers have them as attributes instead
            gn = self.gn
            six = (self.cweight, self.cbias, self.sweight, self.sbias, gn.weight, gn.bias)
        return cast(tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], six)

    def gates(self, x: Tensor) -> Tensor:
        """Return the gate of each value of a map, between 0 and 1, in the shape of the map and before the shuffle.

        The layer multiplies the map by its gain times the gates.
        """
        return reference.gates(x, *(p.detach() for p in self.op_parameters()), eps=self.gn.eps)

    def spatial_channels(self) -> Tensor:
        """Return whether each input channel has one gate per position, (channels,); the others have one per plane."""
        n = self.channels // (2 * self.groups)
        return torch.arange(self.channels) % (2 * n) >= n

    def destinations(self) -> Tensor:
        """Return the output channel that each input channel is moved to, (channels,)."""
        channels, half = torch.arange(self.channels), self.channels // 2
        return 2 * (channels % half) + channels // half if self.shuffle else channels

    def with_start(self, gain: float | None) -> "ShuffleAttention":
        """Return a layer with the parameters of this one and another start.

        Args:
            gain: Gain of a layer without shuffle, an entry of its state dict; None for the published start.
        """
        layer = copy.deepcopy(self, {id(parameter): parameter for parameter in self.parameters()})
        layer._buffers.pop("gain", None)
        layer.shuffle, layer.gain_value = gain is None, 1.0 if gain is None else gain
        if gain is not None:
            layer.register_buffer("gain", self.cweight.detach().new_tensor(gain))
        return layer

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ):
        other = state_dict.get(f"{prefix}gain") if self.gain_value != 1 else None
        # Half precision rounds the gain.
        if other is not None and not (other.is_meta or math.isclose(other, self.gain_value, rel_tol=0.01)):
            error_msgs.append(f"{prefix}gain is {float(other):.4f}, but this layer has gain={self.gain_value:.4f}")
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def extra_repr(self) -> str:
        gain = "" if self.gain_value == 1 else f", gain={self.gain_value:.4f}"
        return f"{self.channels}, groups={self.groups}" + ("" if self.shuffle else ", shuffle=False") + gain


def build(
    channels: int,
    groups: int = 64,
    *,
    eps: float = 1e-5,
    norm: bool = True,
    gate: Any = "affine",
    shuffle: bool = True,
    gain: float = 1.0,
    device: Any = None,
    dtype: Any = None,
) -> ShuffleAttention | ShuffleAttentionAblation:
    """Return the layer, or its ablation if a part of it is removed or replaced."""
    settings: dict[str, Any] = {"eps": eps, "shuffle": shuffle, "device": device, "dtype": dtype}
    if norm and gate == "affine":
        return ShuffleAttention(channels, groups, gain=gain, **settings)
    if gain != 1:
        raise InputError(f"gain={gain} needs the whole layer, got norm={norm} and gate={gate!r}")
    return ShuffleAttentionAblation(channels, groups, norm=norm, gate=gate, **settings)


def identity(layer: Any, **options: Any) -> nn.Module | None:
    """Return the layer without shuffle, with the gain that makes it the identity at its start.

    In a residual branch the shuffle changes nothing that training could not (docs/networks.md). An ablation, and a
    layer whose shuffle or gain is given, has no such start.
    """
    given = options.get("shuffle") or "gain" in options
    return None if given or not isinstance(layer, ShuffleAttention) else layer.with_start(IDENTITY_GAIN)


def factors(layer: Any, x: Tensor) -> Tensor | None:
    """Return the gain times the gates; an ablation has no factors."""
    return layer.gain_value * layer.gates(x) if isinstance(layer, ShuffleAttention) else None


def as_saved(layer: Any, entries: Mapping[str, Tensor]) -> nn.Module | None:
    """Return the layer with the gain of a state dict, or with the published start if that has none."""
    if not isinstance(layer, ShuffleAttention):
        return None
    gain, own = entries.get("gain"), layer.state_dict().get("gain")
    if gain is None:
        return None if own is None else layer.with_start(None)
    if gain.is_meta or gain.numel() != 1:
        return None
    exact = (layer.gain_value, IDENTITY_GAIN)  # a file in half precision has rounded the gain
    value = next((each for each in exact if math.isclose(gain.item(), each, rel_tol=0.01)), gain.item())
    return None if own is not None and value == layer.gain_value else layer.with_start(value)


SPEC = AttentionSpec(
    name="shuffle",
    build=build,
    identity=identity,
    as_saved=as_saved,
    group_parts=2,
    decays=False,
    factors=factors,
    classes=(ShuffleAttention, ShuffleAttentionAblation),
    resnet="sa_resnet{}".format,
    parameters="3 C / groups",
    notes="64 groups, or as many as fit; gates start at sigmoid(1)",
    source="Zhang & Yang, sections 3 and 4",
    arxiv="2102.00240",
)
