"""Statistics of the gates of attention layers over many images."""

import math
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import Blend, spec_of
from ..attention.spec import Gated, factors
from ..errors import InputError
from .stages import eval_mode


class GateStatistics:
    """Statistics of the factors of one layer over images and positions, for each channel.

    A factor is what the layer multiplies a value by: its gate times its gain. All images have the same weight. Batches
    are added one by one and not kept.

    Attributes:
        channels: Number of channels.
        images: Number of images.
        spatial: Whether a channel has one factor per position, (channels,); the others have one per plane.
        low: Smallest factor, (channels,), in float64 on the CPU as all that follow.
        high: Largest factor.
        over_positions: Largest distance of a factor from the mean of its plane.
    """

    def __init__(self, channels: int):
        self.channels = channels
        self.images = 0
        self.spatial = torch.zeros(channels, dtype=torch.bool)
        self.over_positions = torch.zeros(channels, dtype=torch.float64)
        self.low, self.high = self.over_positions + math.inf, self.over_positions - math.inf
        self._sum, self._low_mean, self._high_mean = self.over_positions, self.low, self.high  # of means of planes

    def add(self, factors: Tensor, spatial: Tensor | None = None) -> None:
        """Add the factors of a batch.

        Args:
            factors: Factors of all positions or one per plane, (B, channels or 1, *positions).
            spatial: Whether a channel has one factor per position; by default all have if there are several positions.
        """
        planes = factors.detach().flatten(2).expand(-1, self.channels, -1)
        if not planes.numel():
            return
        low, high, mean = (each.cpu().double() for each in (planes.amin(2), planes.amax(2), planes.mean(2)))
        mean = mean.clamp(low, high)  # a mean of equal numbers may differ from them by rounding
        within = torch.maximum(high - mean, mean - low)
        self.images += len(planes)
        self.spatial = self.spatial | (torch.tensor(planes.shape[2] > 1) if spatial is None else spatial)
        self._sum = self._sum + mean.sum(0)
        self.low, self.high = torch.minimum(self.low, low.amin(0)), torch.maximum(self.high, high.amax(0))
        self._low_mean = torch.minimum(self._low_mean, mean.amin(0))
        self._high_mean = torch.maximum(self._high_mean, mean.amax(0))
        self.over_positions = torch.maximum(self.over_positions, within.amax(0))

    @property
    def mean(self) -> Tensor:
        """Mean factor of each channel."""
        return (self._sum / self.images).clamp(self.low, self.high)

    @property
    def deviation(self) -> Tensor:
        """Largest distance of a factor of each channel from the mean of the channel."""
        return torch.maximum(self.high - self.mean, self.mean - self.low)

    @property
    def over_images(self) -> Tensor:
        """Largest distance of the mean of a plane from the mean of its channel."""
        return torch.maximum(self._high_mean - self.mean, self.mean - self._low_mean)


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the attention layers of a model by name: those whose class a spec names, and those in a :class:`Blend`."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, Blend) or spec_of(m) is not None}
    inside = {f"{name}.layer" for name, layer in layers.items() if isinstance(layer, Blend)}
    return {name: layer for name, layer in layers.items() if name not in inside}


def gate_statistics(model: nn.Module, batches: Iterable[Any]) -> tuple[dict[str, GateStatistics], dict[str, str]]:
    """Return statistics of the gates of every attention layer of a model, in the order in which the layers run.

    All attention that multiplies its input by gates has them: shuffle attention, SE, ECA, CBAM and SGE, and these when
    they are attached. The memory that this takes does not depend on the number of batches.

    Args:
        model: Model; its state is restored afterwards.
        batches: First arguments of the model, on its device, such as preprocessed images (B, channels, height, width).

    Returns:
        The statistics by name of the layer, and for layers without statistics the reason.

    Raises:
        InputError: If there are no batches, or the model has no attention.
    """
    statistics: dict[str, GateStatistics] = {}
    without: dict[str, str] = {}
    layers = attention_modules(model)
    if not layers:
        raise InputError(f"{type(model).__name__} has no attention layers whose gates could be measured")

    def add(name: str, layer: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x = inputs[0]
        own = None if name in without else factors(layer, x)
        if own is None:
            without.setdefault(name, f"{type(layer).__name__} does not multiply its input by gates")
        elif name in statistics and statistics[name].channels != x.shape[1]:
            without[name] = "it runs on maps of different channels"
        elif name not in statistics and not _are_factors(own, layer, x, output):
            without[name] = "its output is not its input times its gates"
        else:
            spatial = layer.spatial_channels() if isinstance(layer, Gated) else None
            statistics.setdefault(name, GateStatistics(x.shape[1])).add(own, spatial)

    with eval_mode(model), torch.no_grad(), ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_hook(partial(add, name)))
        count = sum(1 for batch in batches if model(batch) is not None)
    if not count:
        raise InputError("there are no images to measure gates on")
    without |= {name: "it did not run" for name in layers if name not in {*statistics, *without}}
    return {name: each for name, each in statistics.items() if name not in without and each.images}, without


def _are_factors(own: Tensor, layer: nn.Module, x: Tensor, output: Tensor) -> bool:
    """Return whether an output is its input times factors, shuffled; a subclass may compute something else."""
    expected = (own * x).to(output.dtype)
    if isinstance(layer, Gated):
        expected = expected[:, layer.destinations().argsort().to(x.device)]
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}.get(x.dtype, 0.05)
    largest = float(x.abs().amax()) if x.numel() else 0.0
    return torch.allclose(output, expected, rtol=0, atol=tolerance * max(largest, 1e-30), equal_nan=True)
