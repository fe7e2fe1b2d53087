"""Which layer of a network is looked at, and its output as a map, whatever its layout."""

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError

_LEAST_PLACES = 4


def stages(model: nn.Module) -> dict[str, str]:
    """Returns the modules that end the stages of one of timm's networks: stage1, stage2, ... from fine to coarse.

    They are those of timm's ``feature_info``, without the stem: maps of a stride of 4 and more.
    """
    present = dict(model.named_modules())
    ends = [name for name, stride in _strides(model) if stride >= 4]
    return {f"stage{number}": name for number, name in enumerate(ends, 1) if name in present}


def stage_with_places(model: nn.Module, images: Tensor) -> str | None:
    """Returns the last stage whose map of some images has 4 places a side and more, or None where that is not known.

    At 32 pixels the map of a ResNet's last stage is a single place, which tells nothing.
    """
    strides = dict(_strides(model))
    side = min(images.shape[2:])
    fine = [stage for stage, module in stages(model).items() if side // strides[module] >= _LEAST_PLACES]
    return fine[-1] if fine else None


def _strides(model: nn.Module) -> list[tuple[str, int]]:
    # What detection and features_only wrap is an object with ``info``; a network itself has the list.
    found: Any = getattr(model, "feature_info", None) or []
    return [(str(info["module"]), int(info["reduction"])) for info in getattr(found, "info", found)]


def find_layer(model: nn.Module, layer: str | None, images: Tensor) -> str:
    """Returns the name of the module that is meant.

    Args:
        model: Network.
        layer: A module's name, a stage (``stage1``, ...), or None for the last that gives a map: of timm's networks
            the last stage, of one that classifies by a token the first norm of the last block, because the other
            tokens that leave that block go nowhere.
        images: What the network runs on where it does not say what its stages are, (B, channels, height, width).

    Raises:
        InputError: If there is no such module; the message lists what there is.
    """
    ends = stages(model)
    if layer is None:
        return _last(model, ends, images)
    if layer in ends:
        return ends[layer]
    names = [name for name, _ in model.named_modules() if name]
    if layer in names:
        return layer
    close = difflib.get_close_matches(layer, [*names, *ends], n=4, cutoff=0.5)
    there = [f"{stage} ({name})" for stage, name in ends.items()] or [n for n, _ in model.named_children()]
    close_ones = f"did you mean {' or '.join(close)}? " if close else ""
    raise InputError(
        f"{type(model).__name__} has no layer {layer!r}; {close_ones}any module's name would do, such as "
        f"{', '.join(there)}"
    )


def _last(model: nn.Module, ends: dict[str, str], images: Tensor) -> str:
    if ends:
        end = list(ends.values())[-1]
        norm = f"{end}.norm1"
        by_token = getattr(model, "num_prefix_tokens", 0) and getattr(model, "global_pool", "") == "token"
        return norm if by_token and norm in dict(model.named_modules()) else end
    found = _with_maps(model, images[:1])
    if not found:
        raise InputError(f"no module of {type(model).__name__} gives a map (B, channels, height, width)")
    return found[-1]


def _with_maps(model: nn.Module, image: Tensor) -> list[str]:
    """Names of the modules that give maps of more than one place, in the order in which they end."""
    found: list[str] = []
    handles = []
    try:
        for name, module in model.named_modules():
            if name:

                def note(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
                    if isinstance(output, Tensor) and output.dim() == 4 and output.shape[-1] * output.shape[-2] > 1:
                        found.append(name)

                handles.append(module.register_forward_hook(note))
        with torch.no_grad():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    return found


def as_map(output: Any, model: nn.Module, layer: str, images: Sequence[int]) -> Tensor:
    """Returns what a layer gives as (B, channels, height, width).

    A map in the order (B, height, width, channels), as Swin's are, is told from the other by its sides, which are in
    the ratio of the image's. Tokens (B, tokens, channels) are laid out on the grid of the model's patches, without the
    class token and registers before them.

    Args:
        output: What the layer gave.
        model: The network that the layer is part of.
        layer: Its name, for messages.
        images: Shape of the images (B, channels, height, width).

    Raises:
        InputError: If it is no map; the message says what is.
    """
    batch, _, height, width = images
    if isinstance(output, Tensor) and output.shape[0] == batch:
        if output.dim() == 4:
            first, last = _fits(output.shape[2:], height, width), _fits(output.shape[1:3], height, width)
            if first == last:  # as many channels as places in a row, or an odd pooling: the model knows
                last = str(getattr(model, "output_fmt", "NCHW")) == "NHWC"
                first = not last
            return output if first else output.permute(0, 3, 1, 2)
        if output.dim() == 3:
            prefix = int(getattr(model, "num_prefix_tokens", 0) or 0)
            for left_out in dict.fromkeys((prefix, 0)):  # CaiT has its class token in its last blocks alone
                grid = _grid(model, output.shape[1] - left_out)
                if grid is not None:
                    return output[:, left_out:].transpose(1, 2).unflatten(2, grid)
    received = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    ends = stages(model)
    would = ", ".join(f"{stage} ({name})" for stage, name in ends.items()) or "a convolution or a norm after one"
    raise InputError(
        f"layer {layer!r} of {type(model).__name__} gives {received} for {batch} images, and no map "
        f"(B, channels, height, width) nor a token for each patch; {would} would do"
    )


def _fits(sides: Sequence[int], height: int, width: int) -> bool:
    """Whether a map has the proportions of the image, to the rounding of its sides."""
    return abs(sides[0] * width - sides[1] * height) < max(height, width)


def _grid(model: nn.Module, places: int) -> tuple[int, int] | None:
    grid: Any = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if grid is not None and grid[0] * grid[1] == places:
        return int(grid[0]), int(grid[1])
    side = int(max(places, 0) ** 0.5)
    return (side, side) if side and side * side == places else None
