"""A trained classifier, from a checkpoint or published weights."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import CenterCrop, Resize, v2

from ....checkpoints import CheckpointError, find_state_dict, load_weights, read_checkpoint
from ....checkpoints.architecture import Architecture, fitted, recognise
from ....deploy import find_format, is_deployed
from ....errors import DataError, InputError
from ...data.image_files import ImageFile
from ...data.images import read_image, to_mode
from ...network import create_network, recipe_of, with_normalisation
from ...recipes.recipe import Recipe
from ..predictor import Prediction, Predictor
from .deployed import open_deployed

_LISTED = 5  # classes of a prediction


class View:
    """Preprocessing of a model: the resize, crop and normalisation of its evaluation.

    Args:
        recipe: Recipe with these settings, and a mean and a standard deviation per channel.
    """

    def __init__(self, recipe: Recipe):
        self.reading = recipe.reading
        self.mean, self.std = (torch.tensor(values or [0.0]).view(-1, 1, 1) for values in (recipe.mean, recipe.std))
        self.transform: Any = create_transform(
            input_size=(recipe.in_chans, recipe.img_size, recipe.img_size),
            is_training=False,
            interpolation=recipe.interpolation,
            crop_pct=recipe.crop_pct,
            mean=tuple(recipe.mean or ()),
            std=tuple(recipe.std or ()),
        )

    def tensor(self, image: ImageFile) -> Tensor:
        """Return the model's input, (channels, height, width).

        Raises:
            DataError: If the file cannot be decoded.
        """
        try:
            return self.transform(read_image(image.path, **self.reading))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{image.path} cannot be read: {error}") from error

    def pixels(self, seen: Tensor) -> Tensor:
        """Return the model's input as colours, (height, width, 3) in [0, 1]."""
        colours = (seen.cpu() * self.std + self.mean).clamp(0, 1)
        return colours.expand(3, -1, -1).permute(1, 2, 0)

    def boxes(
        self, boxes: Sequence[tuple[float, float, float, float]], size: tuple[int, int]
    ) -> list[tuple[float, float, float, float]]:
        """Return boxes (x, y, width, height) of a file of the size (width, height), moved to the model's input.

        Boxes outside of it are left out, and others are cut at its edges.
        """
        where: Any = tv_tensors.BoundingBoxes(torch.tensor(boxes), format="XYWH", canvas_size=size[::-1])  # pyright: ignore
        for step in self.transform.transforms:
            if isinstance(step, Resize):
                where = v2.Resize(step.size)(where)
            elif isinstance(step, CenterCrop):
                where = v2.CenterCrop(step.size)(where)
        return [tuple(box) for box in where.tolist() if box[2] > 0 and box[3] > 0]


@dataclass(kw_only=True, eq=False)
class Classifier(Predictor):
    """A classifier that predicts."""

    classifies = True

    recipe: Recipe

    @cached_property
    def view(self) -> View:
        """The resize, crop and normalisation that the model is evaluated with."""
        return View(self.recipe)

    @property
    def spelled(self) -> list[str]:
        """Name of each class as the data spell it; its number if it has no name."""
        known = [str(name) for name in self.classes or ()]
        return known + [str(number) for number in range(len(known), self.num_classes)]

    @contextmanager
    def features(self) -> Iterator[list[Tensor]]:
        """Collect the input of the classifier, (B, features), of each batch that the model is run on.

        Raises:
            InputError: If the model has no single classifier.
        """
        head = getattr(self.model, "get_classifier", lambda: None)()
        if self.is_deployed:
            raise InputError(
                f"{self.source} is a deployed file, which returns no features; take them from its checkpoint"
            )
        if not isinstance(head, nn.Module):
            raise InputError(f"{self.source}: {self.label} has no single classifier, whose input the features are")
        vectors: list[Tensor] = []
        hook = head.register_forward_pre_hook(lambda _, inputs: vectors.append(inputs[0].flatten(1)))
        try:
            yield vectors
        finally:
            hook.remove()

    def inputs(self, image: Image.Image) -> Tensor:
        return self.view.transform(to_mode(image, **self.recipe.reading))[None].to(self.process.device)

    def pixels(self, image: Image.Image, scale: int = 1) -> Tensor:
        """Return the part of an image that the model sees as colours, in ``scale`` times the resolution of its input.

        They have the shape (H, W, 3), in [0, 1].
        """
        view = View(self.recipe.replaced(img_size=scale * self.recipe.img_size)) if scale > 1 else self.view
        return view.pixels(view.transform(to_mode(image, **view.reading)))

    @torch.inference_mode()
    def predict(self, image: Image.Image, threshold: float = 0.0) -> Prediction:
        """Return the most probable classes, at most five, and the image as the model sees it."""
        seen = self.inputs(image)
        top = self.model(seen)[0].float().softmax(0).topk(min(_LISTED, self.num_classes))
        names = self.names
        best = [(names[index], share) for index, share in zip(top.indices.tolist(), top.values.tolist(), strict=True)]
        pixels = (255 * self.view.pixels(seen[0])).round().to(torch.uint8).numpy()
        height, width = pixels.shape[:2]
        return Prediction(
            [pair for pair in best if pair[1] >= threshold],
            f"what the model sees: {width} x {height} pixels",
            lambda: Image.fromarray(pixels),
        )


def restore_network(
    path: str | os.PathLike, *, ema: bool | None = None, settings: dict[str, Any] | None = None
) -> Classifier:
    """Return the classifier in a file; the number of classes and the input size come from the file.

    Args:
        path: A checkpoint of ``sanet train``, a published one, bare weights, or a deployed file.
        ema: Whether to load averaged weights; None loads them if the file has some.
        settings: Fields of the recipe to replace. A file without a recipe may need some: ``model`` and ``model_args``
            if its weights do not tell the model, or ``mean`` and ``std`` of another program's deployed file.

    Raises:
        InputError: If the file cannot be read, its model is neither known nor named, or a setting does not apply.
    """
    settings = settings or {}
    if is_deployed(path):
        file, recipe, num_classes = open_deployed(path, ema=ema, settings=settings)
        return Classifier(
            model=file,
            recipe=recipe,
            classes=_classes(file.metadata, num_classes, path),
            num_classes=num_classes,
            source=str(path),
            label=f"{_label(recipe)} ({find_format(None, Path(path)).name})",
            weights=f"{find_format(None, Path(path)).name} file",
            knows_data="recipe" in file.metadata and recipe.has_data,
        )
    content = read_checkpoint(path)
    weights, name = find_state_dict(content, ema=ema, path=path)
    knows_data = isinstance(content.get("recipe"), dict)
    if knows_data:
        recipe, num_classes = recipe_of(content, path)
        if num_classes > max((len(value) for value in weights.values() if value.dim()), default=0):
            raise CheckpointError(f"{path} says that it has {num_classes} classes, and none of its tensors is as large")
        if settings.get("model", recipe.model) != recipe.model:
            raise CheckpointError(f"{path} holds a {recipe.model}, not a {settings['model']}")
    else:
        known = _named(settings, weights) if "model" in settings else identify(weights, path)
        recipe = _published_recipe(known.model)
        recipe = recipe.replaced(in_chans=known.in_chans, small_stem=known.small_stem).replaced(**settings)
        num_classes = _head_size(recipe.model, known.weights, path)
    model = create_network(recipe, num_classes, restored=True)
    report = load_weights(model, weights, path, name=name, ema=ema)
    return Classifier(
        model=model,
        recipe=with_normalisation(recipe.replaced(**settings), model),
        classes=_classes(content, num_classes, path),
        num_classes=num_classes,
        source=str(path),
        label=_label(recipe),
        weights=report.weights,
        knows_data=knows_data and (recipe.has_data or not Path(path).is_dir()),  # folders are for other machines
    )


def _classes(content: dict[str, Any], num_classes: int, path: str | os.PathLike) -> list[str] | None:
    """Return the class names that a file has; those of ImageNet for 1000 classes of a file without a recipe."""
    classes = content.get("classes")
    if not isinstance(content.get("recipe"), dict):
        return ImageNetInfo().label_names() if num_classes == 1000 else None
    if classes is not None and (not isinstance(classes, list) or len(classes) > num_classes):
        raise CheckpointError(f"{path} has {num_classes} classes and names them {str(classes)[:80]}")
    return classes


def _label(recipe: Recipe) -> str:
    return f"{recipe.model} + {recipe.attach['name']} attention" if recipe.attach else recipe.model


def identify(weights: dict[str, Tensor], path: str | os.PathLike = "checkpoint") -> Architecture:
    """Return the classifier that a state dict belongs to.

    Raises:
        CheckpointError: If it belongs to no model that is known without its name.
    """
    known = recognise(weights)
    command = f"sanet inspect {path} says more"
    if known is None:
        raise CheckpointError(
            f"{path} does not say which model it holds, and its {len(weights)} entries are not those of an SA-ResNet, "
            f"another ResNet or a ShuffleNet; name the model with --model, and its options with --model-args. {command}"
        )
    if known.detector or known.attached or known.differing:
        what = f"a detector ({known.detector})" if known.detector else f"a {known.model}"
        what += f" with attached attention ({known.attention})" if known.attached else ""
        differing = f", from which {known.differing} entries differ" if known.differing else ""
        raise CheckpointError(f"{path} holds {what}{differing}, without the recipe that restores it. {command}")
    return known


def _named(settings: dict[str, Any], weights: dict[str, Tensor]) -> Architecture:
    """Return how a state dict fits the model that the caller names."""
    with torch.device("meta"):
        model = create_network(Recipe(model=settings["model"], model_args=settings.get("model_args", {})), 1000)
    return fitted(settings["model"], weights, model.state_dict())


def _published_recipe(name: str) -> Recipe:
    cfg = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if cfg is None:
        return Recipe(model=name)
    size, crop_pct = cfg.input_size[-1], cfg.crop_pct or 0.875
    return Recipe(model=name).replaced(img_size=size, crop_pct=crop_pct, interpolation=cfg.interpolation)


def _head_size(name: str, weights: dict[str, Tensor], path: str | os.PathLike) -> int:
    cfg = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    head = f"{cfg.classifier if cfg else 'fc'}.bias"
    if head not in weights:
        raise CheckpointError(f"{path} has no {head}, whose length is the number of classes")
    return len(weights[head])
