"""Average the weights of several checkpoints of one model, as timm's ``avg_checkpoints.py`` does."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import brief, counted, listed
from .reading import CheckpointError, read_checkpoint
from .weights import fault, find_state_dict, kind_of, not_finite, unwrapped

logger = logging.getLogger(__name__)
# Entries of a checkpoint about its model and data. All others belong to one point of the training.
_ABOUT = ("kind", "recipe", "num_classes", "classes", "categories", "epoch")
# Fields of a recipe on which the meaning of weights depends.
_MODEL = ("model", "model_args", "small_stem", "attach", "in_chans", "mean", "std")
_MODEL += ("arch", "backbone", "backbone_args", "norm_eps", "detector_args")
_TRAINING = ("data", "seed", "init_seed", "initial")  # in which checkpoints of one training agree


def average_checkpoints(paths: Sequence[str | os.PathLike], *, ema: bool | None = None) -> dict[str, Any]:
    """Return the content of a checkpoint with the mean of the weights of others, and what the last says of its model.

    Sums are in float64, and the means are float32. The running statistics of norms are averaged like weights, and
    counters are rounded down.

    Args:
        paths: At least two checkpoints of the same model.
        ema: Whether to take averaged weights; None takes them if the first file has some.

    Raises:
        CheckpointError: If a file cannot be read, is of another model than the first, or has NaN or infinity.
    """
    if len({Path(path).resolve() for path in paths}) < max(2, len(paths)):
        raise CheckpointError(f"an average needs two or more different checkpoints, got {listed([*map(str, paths)])}")
    first: dict[str, Any] = {}
    entries: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}
    content: dict[str, Any] = {}
    name = ""
    for path in paths:
        content = read_checkpoint(path)
        weights, own_name = find_state_dict(content, ema=ema, path=path)
        weights = unwrapped(weights)
        if faults := not_finite(weights):
            raise CheckpointError(
                f"{path} has NaN or infinity in {counted(len(faults), 'tensor')}: {listed(faults, 4)}"
            )
        if not entries:
            first, entries, name = content, weights, own_name
        else:
            _require_same_model(entries, weights, first, content, str(path), str(paths[0]))
            if own_name != name:
                raise CheckpointError(f"{path} has its weights under {own_name!r}, and {paths[0]} under {name!r}")
        for key, value in weights.items():
            sums[key] = sums[key].add_(value) if key in sums else value.to(torch.float64, copy=True)
    limits = torch.finfo(torch.float32)
    means = {key: total.div_(len(paths)) for key, total in sums.items()}
    averaged = {
        key: mean.clamp_(limits.min, limits.max).float()
        if entries[key].is_floating_point()
        else mean.to(entries[key].dtype)
        for key, mean in means.items()
    }
    about = {key: content[key] for key in _ABOUT if key in content}
    return {**about, "averaged": [Path(path).name for path in paths], "state_dict": averaged}


def _require_same_model(
    entries: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    first: Mapping[str, Any],
    content: Mapping[str, Any],
    path: str,
    first_path: str,
) -> None:
    """Raise CheckpointError if two checkpoints differ in their model; warn if they are of separate trainings."""
    recipe, other = _recipe(content), _recipe(first)
    pairs = [(name, content.get(name), first.get(name)) for name in ("kind", "num_classes", "classes")]
    pairs += [(name, recipe.get(name), other.get(name)) for name in _MODEL]
    shared = entries.keys() & weights.keys()
    differing = [key for key in entries if key in shared and weights[key].shape != entries[key].shape]
    unlike = [key for key in shared if kind_of(weights[key]) != kind_of(entries[key]) or weights[key].is_complex()]
    faults = [
        *(
            f"{name} {brief(own, quoted=False)} for {brief(known, quoted=False)}"
            for name, own, known in pairs
            if own != known
        ),
        fault("missing", [key for key in entries if key not in shared]),
        fault("unexpected", [key for key in weights if key not in shared]),
        fault("wrongly shaped", [f"{key} {tuple(weights[key].shape)}" for key in differing]),
        fault("of another kind", unlike),
    ]
    if any(faults):
        raise CheckpointError(f"{path} is not of the model of {first_path}: {'; '.join(filter(None, faults))}")
    separate = [name for name in _TRAINING if recipe.get(name) != other.get(name)]
    if separate:
        logger.warning(
            "%s and %s are of separate trainings (they differ in %s); their mean is seldom a useful model",
            *(first_path, path, listed(separate)),
        )


def _recipe(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the recipe in the content of a checkpoint, empty if it has none."""
    recipe = content.get("recipe")
    return recipe if isinstance(recipe, dict) else {}
