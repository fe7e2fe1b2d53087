"""What shuffle attention does to an image: its gates, its groups, and where its shuffle sends the channels."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..attention.shuffle import ShuffleAttention
from ..errors import InputError
from ..kernels import reference
from .eval_mode import eval_mode


@dataclass(frozen=True)
class Gates:
    """The gates of one layer for a batch of images.

    Attributes:
        layer: Name of the layer.
        values: What each value of its input is multiplied by, (B, channels, height, width), in the order of the
            channels before the shuffle.
        spatial: Which channels have a gate for each place, (channels,); the others have one for the plane.
        groups: Groups of the channels.
    """

    layer: str
    values: Tensor
    spatial: Tensor
    groups: int

    def of_channels(self) -> Tensor:
        """Returns the gates of the channel branch, (B, channels / 2)."""
        return self.values[:, ~self.spatial, 0, 0]

    def of_places(self) -> Tensor:
        """Returns the gates of the spatial branch, (B, channels / 2, height, width)."""
        return self.values[:, self.spatial]


def attention_layers(model: nn.Module) -> dict[str, ShuffleAttention]:
    """Returns the shuffle attentions of a network by name, in the order in which they are registered."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ShuffleAttention)}


def gates(model: nn.Module, images: Tensor) -> list[Gates]:
    """Returns the gates of every shuffle attention of a network, in the order in which they compute.

    They are computed from what goes into a layer and from its parameters by the reference that defines the layer.

    Args:
        model: Network; it is afterwards as it was.
        images: (B, channels, height, width) as the network wants them, on its device.

    Raises:
        InputError: If the network has no shuffle attention.
    """
    found: list[Gates] = []

    def note(name: str, layer: ShuffleAttention, x: Tensor) -> None:
        found.append(Gates(name, gates_of(layer, x), spatial_channels(layer), layer.groups))

    _see_inputs(model, images, note)
    return found


def gates_of(layer: ShuffleAttention, x: Tensor) -> Tensor:
    """Returns what a layer multiplies each value of its input by before it shuffles, in the shape of the input."""
    parameters = (layer.cweight, layer.cbias, layer.sweight, layer.sbias, layer.gn.weight, layer.gn.bias)
    return reference.gates(x, *(p.detach() for p in parameters), eps=layer.gn.eps, gain=layer.gain_value)


def spatial_channels(layer: ShuffleAttention) -> Tensor:
    """Returns which channels of a layer's input have a gate for each place, (channels,)."""
    n = layer.channels // (2 * layer.groups)
    return torch.arange(layer.channels) % (2 * n) >= n


def destinations(layer: ShuffleAttention) -> Tensor:
    """Returns the channel of a layer's output that each channel of its input ends up as, (channels,)."""
    channels = torch.arange(layer.channels)
    if not layer.shuffle:
        return channels
    half = layer.channels // 2
    return 2 * (channels % half) + channels // half


def group_means(y: Tensor, layer: nn.Module) -> Tensor:
    """Returns the mean over each group of what a layer gives, (B, groups, height, width), as before the shuffle."""
    if not isinstance(layer, ShuffleAttention):
        raise InputError(f"groups are those of a shuffle attention, got {type(layer).__name__}")
    before = y[:, destinations(layer).to(y.device)]
    return before.unflatten(1, (layer.groups, -1)).mean(2)


def groups_by_layer(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Returns the mean activation of each group of every shuffle attention, (B, groups, height, width), by layer.

    Raises:
        InputError: If the network has no shuffle attention.
    """
    found: dict[str, Tensor] = {}

    def note(name: str, layer: ShuffleAttention, x: Tensor) -> None:
        found[name] = (gates_of(layer, x) * x).unflatten(1, (layer.groups, -1)).mean(2)

    _see_inputs(model, images, note)
    return found


def _see_inputs(model: nn.Module, images: Tensor, note: Callable[[str, ShuffleAttention, Tensor], None]) -> None:
    """Runs the network once and shows each attention with what goes into it."""
    layers = attention_layers(model)
    if not layers:
        raise InputError(f"{type(model).__name__} has no shuffle attention, whose gates could be shown")

    def hook(_: nn.Module, inputs: tuple[Any, ...], name: str) -> None:
        note(name, layers[name], inputs[0].detach())

    with eval_mode(model), torch.no_grad():
        handles = []
        try:
            for name, layer in layers.items():
                handles.append(layer.register_forward_pre_hook(partial(hook, name=name)))
            model(images)
        finally:
            for handle in handles:
                handle.remove()
