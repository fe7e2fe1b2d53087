"""Deployed files as classifiers: the settings that are in a file, and those that can still be chosen."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....checkpoints import CheckpointError
from ....deploy import Artefact, load
from ....errors import InputError, brief, counted
from ...network import recipe_of, with_normalisation
from ...recipes.recipe import Recipe

logger = logging.getLogger(__name__)
_ON_CPU: dict[str, Any] = {"device": "cpu", "precision": "fp32", "channels_last": False, "memory": "keep"}


def open_deployed(
    path: str | os.PathLike, *, ema: bool | None = None, settings: dict[str, Any] | None = None
) -> tuple[Artefact, Recipe, int]:
    """Return a deployed classifier, its recipe with some settings replaced, and its number of classes.

    The file of another program does not say how its images are prepared, and the settings must.

    Raises:
        InputError: If the file cannot be opened or is no classifier, a setting does not apply to it, or one is missing.
    """
    settings = settings or {}
    file = load(path)
    _, channels, *sides = file.shape or (None, None, None, None)
    if channels not in (None, 1, 3) or len(sides) != 2 or len({*sides} - {None}) > 1:
        raise InputError(
            f"{path} takes inputs of the shape {_sizes(file.shape or ())}, not (B, C, H, W) with 1 or 3 channels and "
            "square images"
        )
    side = sides[0] or sides[1]
    recipe, num_classes = Recipe(model=Path(path).name, mean=None, std=None), None
    of_sanet = "recipe" in file.metadata
    if of_sanet:
        recipe, num_classes = recipe_of(file.metadata, path)
    _require_applicable(path, {"ema": ema, **settings}, channels, side)
    given = {"in_chans": channels, "img_size": side}
    recipe = recipe.replaced(**{**settings, **{name: size for name, size in given.items() if size}, **_ON_CPU})
    missing = [f"--{name}" for name in ("mean", "std") if getattr(recipe, name) is None]
    if not of_sanet:
        missing += [f"--{name.replace('_', '-')}" for name in given if not given[name] and name not in settings]
    if missing:
        raise InputError(
            f"{path} does not say how images are prepared for it; give {' and '.join(missing)} to sanet eval or predict"
        )
    if not of_sanet and {"interpolation", "crop_pct"} - {*settings}:
        logger.warning(
            "%s does not say how images are resized: --interpolation %s and --crop-pct %g are used",
            *(path, recipe.interpolation, recipe.crop_pct),
        )
    recipe = with_normalisation(recipe, file)
    return file, recipe, _try_once(file, recipe, num_classes)


def _require_applicable(path: str | os.PathLike, given: dict[str, Any], channels: int | None, side: int | None) -> None:
    """Raise InputError if a setting that was given has no meaning for a file, and another value than the file's."""
    of_model = dict.fromkeys(("model", "model_args", "small_stem", "attach"), ([], "it holds its model"))
    fixed: dict[str, tuple[list[Any], str]] = {
        **of_model,
        "ema": ([None], "its weights were chosen when it was exported"),
        "device": (["auto", "cpu"], "its runtime uses the CPU"),
        "precision": (["fp32"], "its precision was chosen when it was exported"),
        "channels_last": ([False], "its memory format was chosen when it was exported"),
        "in_chans": ([channels], f"it takes images of {channels} channels"),
        "img_size": ([side], f"it takes images of {side} x {side} pixels"),
    }
    for name in ("in_chans", "img_size"):
        if fixed[name][0] == [None]:  # any
            del fixed[name]
    for name in fixed.keys() & given.keys():
        values, reason = fixed[name]
        if given[name] not in values:
            flag = name.replace("_", "-")
            value = brief(given[name], quoted=False)
            flag = f"--{'' if given[name] else 'no-'}{flag}" if isinstance(given[name], bool) else f"--{flag} {value}"
            raise InputError(f"{flag} does not apply to {path}, which is a deployed file: {reason}")


def _try_once(file: Artefact, recipe: Recipe, num_classes: int | None) -> int:
    """Return the number of classes that a file returns logits for; those of another program may be probabilities.

    Raises:
        InputError: If it returns something else than logits, or those of another number of classes.
    """
    images = torch.randn(
        2, recipe.in_chans, recipe.img_size, recipe.img_size, generator=torch.Generator().manual_seed(0)
    )
    output = file(images)
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != 2 or not output.is_floating_point():
        shape = _sizes(output.shape) if isinstance(output, Tensor) else counted(len(output), "output")
        raise InputError(f"{file.path} is no classifier: for 2 images it returns {shape}, not a row of logits each")
    if num_classes is not None and output.shape[1] != num_classes:
        raise CheckpointError(
            f"{file.path} says that it has {num_classes} classes, and returns {output.shape[1]} logits"
        )
    if num_classes is None and bool((output >= 0).all()) and bool(((output.double().sum(1) - 1).abs() < 1e-3).all()):
        logger.info("%s returns probabilities, not logits, by their sum; their logarithms are used", file.path)
        run = file.run
        file.run = lambda images: run(images).clamp_min(torch.finfo(torch.float32).tiny).log()
    return output.shape[1]


def _sizes(shape: Any) -> str:
    return f"({', '.join('any' if size is None else str(size) for size in shape)})"
