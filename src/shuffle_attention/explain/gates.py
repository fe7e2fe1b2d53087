"""The gates, the groups and the channel shuffle of a model's shuffle attention layers, for given images."""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..attention.spec import Gated
from ..errors import InputError
from .stages import eval_mode


@dataclass(frozen=True)
class Gates:
    """The gates of one layer for a batch of images.

    Attributes:
        layer: Name of the layer.
        values: Gate of each value of the layer's input, between 0 and 1, (B, channels, height, width), in the order of
            the channels before the shuffle.
        spatial: Whether a channel has one gate per position, (channels,); the others have one gate per plane.
        groups: Number of groups of channels.
    """

    layer: str
    values: Tensor
    spatial: Tensor
    groups: int

    def of_channels(self) -> Tensor:
        """Return the gates of the channel branch, (B, channels / 2)."""
        return self.values[:, ~self.spatial, 0, 0]

    def of_positions(self) -> Tensor:
        """Return the gates of the spatial branch, (B, channels / 2, height, width)."""
        return self.values[:, self.spatial]

    of_places = of_positions  # its name until version 0.3


@dataclass(frozen=True)
class Activity:
    """How much the gates of one layer vary, as root mean squares in units of a gate, which lies between 0 and 1.

    Attributes:
        over_images: Deviation of the gates of the channel branch over the images.
        over_positions: Deviation of the gates of the spatial branch over the positions of a plane.
        from_start: Difference between the gates and those of the layer as it is initialised.
    """

    over_images: float
    over_positions: float
    from_start: float


@dataclass(frozen=True)
class GroupScores:
    """Class scores of one image, masked by what each group of one layer responds to.

    Attributes:
        layer: Name of the shuffle attention.
        means: Mean activation of each group, (groups, rows, columns).
        probabilities: Class probabilities when the image is masked by each group's mean activation, (groups, classes).
    """

    layer: str
    means: Tensor
    probabilities: Tensor


def attention_layers(model: nn.Module) -> dict[str, Gated]:
    """Return the layers of a model whose gates can be shown by name, in the order in which they are registered."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Gated)}


def gates(model: nn.Module, images: Tensor) -> list[Gates]:
    """Return the gates of every shuffle attention of a model, in the order in which the layers run.

    Args:
        model: Model; its state is restored afterwards.
        images: Preprocessed images (B, channels, height, width) on the model's device.

    Raises:
        InputError: If the model has no shuffle attention.
    """
    by_layer: list[Gates] = []

    def add(name: str, layer: Gated, x: Tensor) -> None:
        by_layer.append(Gates(name, layer.gates(x), layer.spatial_channels(), layer.groups))

    _run(model, images, add)
    return by_layer


def gate_activity(model: nn.Module, run: Callable[[], object]) -> dict[str, Activity]:
    """Return how much the gates of each attention layer vary while ``run`` runs the model, by layer.

    Args:
        model: Model in evaluation mode. Layers inside fused blocks are called one by one meanwhile.
        run: Function that runs the model over batches of images, which may differ in size.
    """
    starts: dict[str, Any] = {name: copy.deepcopy(layer) for name, layer in attention_layers(model).items()}
    with torch.random.fork_rng(devices=[]):  # a layer may initialise itself at random
        for layer in starts.values():
            layer.reset_parameters()
    measured: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {name: [] for name in starts}

    def add(name: str, layer: Gated, x: Tensor) -> None:
        spatial = layer.spatial_channels().to(x.device)
        planes = layer.gates(x).flatten(2)
        change = planes - starts[name].gates(x).flatten(2)
        over_positions = planes[:, spatial].var(2, unbiased=False).mean(1)
        measured[name].append((planes[:, ~spatial, 0], over_positions, change.square().mean((1, 2))))

    with torch.no_grad(), _watched(model, add):
        run()

    def summarised(parts: list[tuple[Tensor, Tensor, Tensor]]) -> Activity:
        channel, over_positions, change = (torch.cat(part).double().cpu() for part in zip(*parts, strict=True))
        variances = channel.var(0, unbiased=False), over_positions, change
        return Activity(*(float(variance.mean().sqrt()) for variance in variances))

    return {name: summarised(parts) for name, parts in measured.items() if parts}


def destinations(layer: Gated) -> Tensor:
    """Return the output channel that each input channel of a layer is moved to, (channels,)."""
    return layer.destinations()


def group_means(y: Tensor, layer: nn.Module) -> Tensor:
    """Return the mean over each group of a layer's output, (B, groups, height, width), in the order before the shuffle.

    Raises:
        InputError: If the layer is not a shuffle attention.
    """
    if not isinstance(layer, Gated):
        raise InputError(f"groups are those of a shuffle attention, got {type(layer).__name__}")
    before = y[:, destinations(layer).to(y.device)]
    return before.unflatten(1, (layer.groups, -1)).mean(2)


def groups_by_layer(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return the mean activation of each group of every shuffle attention, (B, groups, height, width), by layer.

    Raises:
        InputError: If the model has no shuffle attention.
    """
    means: dict[str, Tensor] = {}

    def add(name: str, layer: Gated, x: Tensor) -> None:
        means[name] = (layer.gain_value * layer.gates(x) * x).unflatten(1, (layer.groups, -1)).mean(2)

    _run(model, images, add)
    return means


def group_scores(
    model: nn.Module, image: Tensor, classes: list[int], *, batch_size: int = 32
) -> tuple[list[GroupScores], list[float]]:
    """Return class probabilities under the mask of each group, by layer, and those of the whole image.

    A mask is the mean activation of a group, scaled to [0, 1] and resized to the image. It multiplies the normalised
    image, so that masked pixels become the mean colour.

    Args:
        model: Model with shuffle attention; its state is restored afterwards.
        image: Preprocessed image (channels, height, width) on the model's device.
        classes: The classes to score.
        batch_size: Number of masked images per forward pass.

    Raises:
        InputError: If the model has no shuffle attention.

    Source: after Zhang & Yang, SA-Net, arXiv:2102.00240, section 4, on the response of the groups.
    """
    scores = []
    with eval_mode(model), torch.no_grad():
        whole = model(image[None]).float().softmax(1)[0, classes].tolist()
        for name, means in groups_by_layer(model, image[None]).items():
            masks = as_masks(means[0], image.shape[1:])
            parts = [model(image * mask[:, None]).float().softmax(1) for mask in masks.split(batch_size)]
            scores.append(GroupScores(name, means[0], torch.cat(parts)[:, classes]))
    return scores, whole


def as_masks(means: Tensor, size: torch.Size) -> Tensor:
    """Return maps (N, rows, columns) scaled to [0, 1] and resized to an image, (N, height, width)."""
    low, high = means.amin((1, 2), keepdim=True), means.amax((1, 2), keepdim=True)
    scaled = (means - low) / (high - low).clamp_min(torch.finfo(means.dtype).tiny)
    return functional.interpolate(scaled[:, None], list(size), mode="bilinear", align_corners=False)[:, 0]


def _run(model: nn.Module, images: Tensor, on_input: Callable[[str, Gated, Tensor], None]) -> None:
    """Run the model once and call ``on_input`` with the name, the module and the input of each gated layer."""
    if not attention_layers(model):
        raise InputError(f"{type(model).__name__} has no shuffle attention, whose gates could be shown")
    with eval_mode(model), torch.no_grad(), _watched(model, on_input):
        model(images)


@contextmanager
def _watched(model: nn.Module, on_input: Callable[[str, Gated, Tensor], None]) -> Iterator[None]:
    """Call ``on_input`` with the name, the module and the input of each gated layer that runs within the block."""

    def hook(name: str, layer: Any, inputs: tuple[Any, ...]) -> None:
        on_input(name, layer, inputs[0].detach())

    with ExitStack() as hooks:
        for name in attention_layers(model):
            hooks.enter_context(model.get_submodule(name).register_forward_pre_hook(partial(hook, name)))
        yield
