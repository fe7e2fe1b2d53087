"""The network that a recipe or a checkpoint speaks of."""

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, resolve_data_config
from torch import Tensor, nn

from ..attach import attach
from ..checkpoints import CheckpointError, find_state_dict, load_checkpoint, read_checkpoint, unwrapped
from ..errors import InputError, asked_for, unknown
from ..models import small_input_stem  # with it all networks are registered
from .data.images import to_mode
from .explain.view import View
from .recipes.recipe import Recipe, RunRecipe
from .tasks.predictor import Prediction, Predictor

R = TypeVar("R", bound=RunRecipe)
_LISTED = 5  # classes of a prediction
# Arguments of timm.create_model that fetch weights: not for a network whose own are about to be loaded.
_SOURCES_OF_WEIGHTS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path")


def create_network(recipe: Recipe, num_classes: int, *, restored: bool = False) -> nn.Module:
    """Returns the network of a recipe on the CPU, initialised afresh, or to be filled from a checkpoint.

    Raises:
        InputError: If there is no such model, or it does not take these arguments.
    """
    if not timm.is_model(recipe.model):
        raise unknown("model", recipe.model, timm.list_models())
    optional = {"drop_rate": recipe.drop_rate, "drop_path_rate": recipe.drop_path_rate}
    args: dict[str, Any] = {name: rate for name, rate in optional.items() if rate}
    args |= {"num_classes": num_classes, "in_chans": recipe.in_chans, **recipe.model_args}
    if restored:
        args = {name: value for name, value in args.items() if name not in _SOURCES_OF_WEIGHTS}
    with asked_for(model=recipe.model, **args):
        model = timm.create_model(recipe.model, **args)
    if recipe.small_stem:
        small_input_stem(model)
    if recipe.attach:
        _attach(model, recipe)
    return model


def _attach(model: nn.Module, recipe: Recipe) -> None:
    """Attach the attention of a recipe."""
    device = next(model.parameters()).device
    example = torch.zeros(2, recipe.in_chans, recipe.img_size, recipe.img_size, device=device)
    options = dict(recipe.attach)
    with asked_for(model=recipe.model, attach=recipe.attach):
        attach(model, options.pop("name"), example=example, **options)


def with_normalisation(recipe: Recipe, model: nn.Module) -> Recipe:
    """Returns the recipe with the mean and deviation of its pixels, the model's own where it names none."""
    cfg = resolve_data_config(model=model)
    found = {}
    for name in ("mean", "std"):
        values = getattr(recipe, name) or list(cfg[name])
        # Grey input of a network for colours, or the reverse: one figure for all channels.
        found[name] = values if len(values) == recipe.in_chans else [sum(values) / len(values)] * recipe.in_chans
    return recipe.replaced(**found)


@dataclass(kw_only=True, eq=False)
class Classifier(Predictor):
    """A classifier that predicts."""

    has_maps = True

    recipe: Recipe

    @cached_property
    def view(self) -> View:
        """The resize, crop and normalisation that the model is evaluated with."""
        return View(self.recipe)

    def inputs(self, image: Image.Image) -> Tensor:
        return self.view.transform(to_mode(image, self.view.mode))[None].to(self.process.device)

    def pixels(self, inputs: Tensor) -> Tensor:
        return self.view.pixels(inputs[0])

    @torch.inference_mode()
    def predict(self, image: Image.Image, threshold: float = 0.0) -> Prediction:
        """Return the most probable classes, at most five, and the image as the model sees it."""
        seen = self.inputs(image)
        top = self.model(seen)[0].float().softmax(0).topk(min(_LISTED, self.num_classes))
        names = self.names
        best = [(names[index], share) for index, share in zip(top.indices.tolist(), top.values.tolist(), strict=True)]
        pixels = (255 * self.pixels(seen)).round().to(torch.uint8).numpy()
        return Prediction(
            [pair for pair in best if pair[1] >= threshold],
            "what the model sees",
            lambda: Image.fromarray(pixels),
        )


def restore_network(
    path: str | os.PathLike, *, ema: bool | None = None, settings: dict[str, Any] | None = None
) -> Classifier:
    """Return the classifier in a checkpoint; the number of classes and the input size come from the file.

    Args:
        path: A checkpoint of ``sanet train``, a published one, or bare weights.
        ema: Whether to take averaged weights; None takes them where the file has them.
        settings: Fields of the recipe for a file that holds none: ``model`` and ``model_args`` for a network
            that is not one of the SA-ResNets as published.

    Raises:
        CheckpointError: If the file cannot be read, or its network is not known and not named.
    """
    content = read_checkpoint(path)
    found, _ = find_state_dict(content, ema=ema, path=path)
    settings = settings or {}
    if isinstance(content.get("recipe"), dict):
        recipe, num_classes = recipe_of(content, path)
        classes = content.get("classes")
        if classes is not None and (not isinstance(classes, list) or len(classes) > num_classes):
            raise CheckpointError(f"{path} tells {num_classes} classes apart and names them {str(classes)[:80]}")
        if settings.get("model", recipe.model) != recipe.model:
            raise CheckpointError(f"{path} holds a {recipe.model}, not a {settings['model']}")
    else:
        weights = unwrapped(found)
        recipe = _published_recipe(settings.get("model") or identify(weights, path))
        stem = weights.get("conv1.weight")
        if stem is not None and stem.dim() == 4:
            recipe = recipe.replaced(in_chans=stem.shape[1], small_stem=stem.shape[-1] == 3)
        recipe = recipe.replaced(**settings)
        num_classes = _head_size(recipe.model, weights, path)
        classes = ImageNetInfo().label_names() if num_classes == 1000 else None
    network = create_network(recipe, num_classes, restored=True)
    report = load_checkpoint(network, path, ema=ema)
    return Classifier(
        model=network,
        recipe=with_normalisation(recipe, network),
        classes=classes,
        num_classes=num_classes,
        source=str(path),
        label=recipe.model,
        weights=report.weights,
    )


def recipe_of(content: dict[str, Any], path: object, kind: type[R] = Recipe) -> tuple[R, int]:
    """Returns the recipe and the number of classes in the content of a run's checkpoint.

    Raises:
        CheckpointError: If it holds none that can be used, or is of another kind of network.
    """
    recipe, num_classes = content.get("recipe"), content.get("num_classes")
    if not isinstance(recipe, dict) or not isinstance(num_classes, int):
        raise CheckpointError(f"{path} holds weights and not a run of {kind.command}; start from it with --initial")
    held = content.get("kind", Recipe.kind)  # not said before there were others
    if held != kind.kind:
        raise CheckpointError(f"{path} holds a {held}, and not a {kind.kind} of {kind.command}")
    try:
        return kind().replaced(**{str(name): value for name, value in recipe.items()}), num_classes
    except InputError as error:
        raise CheckpointError(f"{path} holds a recipe that cannot be used: {error}") from error


def identify(weights: dict[str, Tensor], path: str | os.PathLike = "checkpoint") -> str:
    """Returns the name of the SA-ResNet that a state dict belongs to.

    Raises:
        CheckpointError: If it belongs to none.
    """
    names = timm.list_models("sa_resnet*")
    for name in names:
        expected = timm.create_model(name, device=torch.device("meta")).state_dict()
        # The head and the first convolution depend on the data, not on the network.
        if expected.keys() == weights.keys() and all(
            value.shape == weights[key].shape for key, value in expected.items() if not key.startswith(("fc", "conv1"))
        ):
            return name
    raise CheckpointError(
        f"{path} does not say which network it holds, and its {len(weights)} entries are those of none of "
        f"{', '.join(names)}; name it with --model, and what is special about it with --model-args"
    )


def _published_recipe(name: str) -> Recipe:
    cfg = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if cfg is None:
        return Recipe(model=name)
    found = {"img_size": cfg.input_size[-1], "crop_pct": cfg.crop_pct or 0.875, "interpolation": cfg.interpolation}
    return Recipe(model=name).replaced(**found)


def _head_size(name: str, weights: dict[str, Tensor], path: str | os.PathLike) -> int:
    cfg = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    head = f"{cfg.classifier if cfg else 'fc'}.bias"
    if head not in weights:
        raise CheckpointError(f"{path} has no {head}, which would tell the number of its classes")
    return len(weights[head])
