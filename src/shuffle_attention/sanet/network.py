"""The model of a recipe, and the recipe in a checkpoint."""

from typing import Any, TypeVar

import timm
import torch
from timm.data import resolve_data_config
from torch import nn

from ..attach import attach
from ..checkpoints import CheckpointError
from ..errors import InputError, asked_for, unknown
from ..models import set_memory, small_input_stem  # importing it registers all models
from .recipes.recipe import SOURCES_OF_WEIGHTS, Recipe, RunRecipe

R = TypeVar("R", bound=RunRecipe)


def require_model(name: str) -> None:
    """Raise InputError unless timm has a model of this name, with or without a tag of its weights."""
    if not timm.is_model(name):
        raise unknown("model", name, timm.list_models())


def create_network(recipe: Recipe, num_classes: int, *, restored: bool = False) -> nn.Module:
    """Return the model of a recipe on the CPU, initialised or, if ``restored``, to be filled from a checkpoint.

    Raises:
        InputError: If there is no such model, or it does not accept these arguments.
    """
    require_model(recipe.model)
    optional = {"drop_rate": recipe.drop_rate, "drop_path_rate": recipe.drop_path_rate}
    args: dict[str, Any] = {name: rate for name, rate in optional.items() if rate}
    args |= {"num_classes": num_classes, "in_chans": recipe.in_chans, **recipe.model_args}
    if restored:
        args = {name: value for name, value in args.items() if name not in SOURCES_OF_WEIGHTS}
    with asked_for(model=recipe.model, **args):
        model = timm.create_model(recipe.model, **args)
    if recipe.small_stem:
        small_input_stem(model)
    if recipe.attach:
        _attach(model, recipe)
    set_memory(model, recipe.memory)
    return model


def _attach(model: nn.Module, recipe: Recipe) -> None:
    """Attach the attention of a recipe."""
    device = next(model.parameters()).device
    example = torch.zeros(2, recipe.in_chans, recipe.img_size, recipe.img_size, device=device)
    options = dict(recipe.attach)
    with asked_for(model=recipe.model, attach=recipe.attach):
        attach(model, options.pop("name"), example=example, **options)


def with_normalisation(recipe: Recipe, model: nn.Module) -> Recipe:
    """Return the recipe with mean and deviation of the pixels, by default those of the model."""
    cfg = resolve_data_config(model=model)
    normalisation = {}
    for name in ("mean", "std"):
        values = getattr(recipe, name) or list(cfg[name])
        # Grey input for a colour model, or the reverse: one value for all channels.
        normalisation[name] = (
            values if len(values) == recipe.in_chans else [sum(values) / len(values)] * recipe.in_chans
        )
    return recipe.replaced(**normalisation)


def recipe_of(content: dict[str, Any], path: object, kind: type[R] = Recipe) -> tuple[R, int]:
    """Return the recipe and the number of classes in the content of a checkpoint.

    Raises:
        CheckpointError: If it holds no usable recipe, or one of another task.
    """
    recipe, num_classes = content.get("recipe"), content.get("num_classes")
    if "recipe" in content and not (isinstance(recipe, dict) and isinstance(num_classes, int)):
        raise CheckpointError(f"{path} has a damaged recipe or number of classes; copy or write it again")
    if not isinstance(recipe, dict) or not isinstance(num_classes, int):
        raise CheckpointError(f"{path} holds weights, not a run of {kind.command}; start from it with --initial")
    actual = content.get("kind", Recipe.kind)  # absent from checkpoints written before detectors existed
    if actual != kind.kind:
        commands = {"classifier": "sanet", "detector": "sanet detect"}.get(actual)
        hint = f"; {commands} eval, {commands} predict and {commands} export take it" if commands else ""
        raise CheckpointError(f"{path} holds a {actual}, not a {kind.kind} of {kind.command}{hint}")
    # Runs from before there was this field read images as they are stored.
    recipe = {"as_stored": True, **recipe}
    try:
        return kind.of(recipe), num_classes
    except InputError as error:
        raise CheckpointError(f"{path} holds a recipe that cannot be used: {error}") from error
