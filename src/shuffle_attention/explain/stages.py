"""Run a model in evaluation mode, find the layer to explain, and arrange its output as a map."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, unknown

_SMALLEST_SIDE = 4  # of a map in positions


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Run a model in evaluation mode with gradients, then restore every module's mode.

    Modes are set module by module: a model may train with some modules, such as its norms, in evaluation mode, and
    ``train()`` may be overridden to do more than set a mode. Parameters are unchanged as long as gradients are taken
    with ``torch.autograd.grad``. Where the model returns an object with ``logits``, as those of Hugging Face do, it
    returns the logits within the block.
    """
    modes = [(module, module.training) for module in model.modules()]
    logits = model.register_forward_hook(lambda _, __, output: getattr(output, "logits", output))
    try:
        for module, _ in modes:
            module.training = False
        with logits, torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def stages(model: nn.Module) -> dict[str, str]:
    """Return the modules that end the stages of a timm model by stage1, stage2, ..., from fine to coarse.

    They are those of timm's ``feature_info`` without the stem: maps of stride 4 and more.
    """
    present = dict(model.named_modules())
    ends = [name for name, stride in _strides(model) if stride >= 4]
    return {f"stage{number}": name for number, name in enumerate(ends, 1) if name in present}


def last_readable_stage(model: nn.Module, images: Tensor) -> str | None:
    """Return the last stage whose map has at least 4 positions per side, or None if the strides are unknown.

    For images of 32 pixels the map of a ResNet's last stage is a single position, which says nothing about where.
    """
    strides = dict(_strides(model))
    side = min(images.shape[2:])
    fine = [stage for stage, module in stages(model).items() if side // strides[module] >= _SMALLEST_SIDE]
    return fine[-1] if fine else None


def _strides(model: nn.Module) -> list[tuple[str, int]]:
    # A model has the list itself; wrappers such as features_only have an object with ``info``.
    features: Any = getattr(model, "feature_info", None) or []
    return [(str(info["module"]), int(info["reduction"])) for info in getattr(features, "info", features)]


def find_layer(model: nn.Module, layer: str | None, images: Tensor) -> str:
    """Return the name of the module to explain.

    Args:
        model: Model.
        layer: A module's name, a stage (``stage1``, ...), or None for the last module that returns a map. That is the
            last stage of a timm model; in a model that classifies by a token it is the first norm of the last block,
            since the other tokens that leave that block are not used.
        images: Images (B, channels, height, width) to run the model on if it does not declare its stages.

    Raises:
        InputError: If the module does not exist; the message lists stages and close names.
    """
    ends = stages(model)
    if layer is None:
        return _last(model, ends, images)
    if layer in ends:
        return ends[layer]
    names = [name for name, _ in model.named_modules() if name]
    if layer in names:
        return layer
    would = [f"{stage} ({name})" for stage, name in ends.items()] or [name for name, _ in model.named_children()]
    error = unknown(f"layer of {type(model).__name__}", layer, [*ends, *names])
    raise InputError(f"{error} (any module's name would do, such as {', '.join(would)})")


def _last(model: nn.Module, ends: dict[str, str], images: Tensor) -> str:
    if ends:
        end = list(ends.values())[-1]
        norm = f"{end}.norm1"
        by_token = getattr(model, "num_prefix_tokens", 0) and getattr(model, "global_pool", "") == "token"
        return norm if by_token and norm in dict(model.named_modules()) else end
    with_maps = _with_maps(model, images[:1])
    if not with_maps:
        raise InputError(f"no module of {type(model).__name__} returns a map (B, channels, height, width)")
    return with_maps[-1]


def _with_maps(model: nn.Module, image: Tensor) -> list[str]:
    """Return the names of the modules whose output is a map of several positions, in the order in which they end."""
    names = {module: name for name, module in model.named_modules() if name}
    with_maps: list[str] = []

    def hook(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and output.shape[-1] * output.shape[-2] > 1:
            with_maps.append(names[module])

    with torch.no_grad(), ExitStack() as hooks:
        for module in names:
            hooks.enter_context(module.register_forward_hook(hook))
        model(image)
    return with_maps


def as_map(output: Any, model: nn.Module, layer: str, images: Sequence[int]) -> Tensor:
    """Arrange a layer's output as a map (B, channels, height, width).

    Maps (B, height, width, channels), such as Swin's, are recognised by their sides, which have the ratio of the
    image's. Tokens (B, tokens, channels) are laid out on the model's grid of patches, without class tokens.

    Args:
        output: Output of the layer.
        model: The model that the layer is part of.
        layer: Name of the layer, for messages.
        images: Shape of the images (B, channels, height, width).

    Raises:
        InputError: If the output is not a map; the message names layers whose output is.
    """
    batch, _, height, width = images
    if isinstance(output, Tensor) and output.shape[0] == batch:
        if output.dim() == 4:
            first, last = _fits(output.shape[2:], height, width), _fits(output.shape[1:3], height, width)
            if first == last:  # as many channels as positions in a row, or unusual pooling: ask the model
                last = str(getattr(model, "output_fmt", "NCHW")) == "NHWC"
                first = not last
            return output if first else output.permute(0, 3, 1, 2)
        if output.dim() == 3:
            prefix = int(getattr(model, "num_prefix_tokens", 0) or 0)
            for left_out in dict.fromkeys((prefix, 0)):  # CaiT adds its class token only in its last blocks
                grid = _grid(model, output.shape[1] - left_out)
                if grid is not None:
                    return output[:, left_out:].transpose(1, 2).unflatten(2, grid)
    received = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    ends = stages(model)
    would = ", ".join(f"{stage} ({name})" for stage, name in ends.items()) or "a convolution or a norm after one"
    raise InputError(
        f"layer {layer!r} of {type(model).__name__} returns {received} for {batch} images, neither a map "
        f"(B, channels, height, width) nor a token per patch; {would} would do"
    )


def _fits(sides: Sequence[int], height: int, width: int) -> bool:
    """Return whether a map has the proportions of the image, up to the rounding of its sides."""
    return abs(sides[0] * width - sides[1] * height) < max(height, width)


def _grid(model: nn.Module, positions: int) -> tuple[int, int] | None:
    grid: Any = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if grid is not None and grid[0] * grid[1] == positions:
        return int(grid[0]), int(grid[1])
    side = int(max(positions, 0) ** 0.5)
    return (side, side) if side and side * side == positions else None
