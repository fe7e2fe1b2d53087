"""Open the models to explain, from checkpoints or by their names in timm, and prepare their inputs."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from timm.data import ImageNetInfo, resolve_model_data_config
from torch import Tensor

from ...errors import InputError, asked_for
from ...explain.stages import eval_mode
from ..data.image_files import ImageFile
from ..network import create_network, with_normalisation
from ..recipes.recipe import Recipe
from ..tasks.classification.predictor import Classifier, restore_network


def open_models(
    sources: Sequence[str | os.PathLike],
    *,
    labels: Sequence[str] = (),
    pretrained: bool = False,
    ema: bool | None = None,
    img_size: int | None = None,
    of_weights: str | None = None,
) -> list[Classifier]:
    """Return models from checkpoints, or from timm by name.

    Args:
        sources: Checkpoints, or names of timm models that are not files.
        labels: Names to show; by default those of the models, or if these are equal the checkpoints' folders.
        pretrained: Whether to download timm's weights for named models; otherwise they are initialised randomly.
        ema: Whether to load averaged weights; None loads them if a checkpoint has them.
        img_size: Side of the input in pixels; by default that of the training.
        of_weights: The model of checkpoints that do not name theirs.

    Raises:
        InputError: If a checkpoint or model does not exist, or the labels do not match the sources.
    """
    if labels and (len(labels) != len(sources) or len(set(labels)) < len(labels)):
        raise InputError(f"labels must be different, one for each of {len(sources)} networks, got {', '.join(labels)}")
    models = []
    for source in map(str, sources):
        if not Path(source).exists() and timm.is_model(source):
            models.append(_named(source, pretrained))
        else:
            models.append(restore_network(source, ema=ema, settings={"model": of_weights} if of_weights else None))
            if models[-1].is_deployed:
                raise InputError(
                    f"{source} is a deployed file, without gradients and layers to look into; explain the checkpoint "
                    "that it was exported from"
                )
    if not labels:
        candidates = (
            [model.label for model in models],
            [Path(model.source).resolve().parent.name for model in models],
            [model.source for model in models],
            [f"{model.source} ({number})" for number, model in enumerate(models, 1)],
        )
        labels = next(names for names in candidates if len(set(names)) == len(names))
    for label, model in zip(labels, models, strict=True):
        model.label = label
        model.model.eval()
        if img_size is not None:
            model.recipe = model.recipe.replaced(img_size=img_size)
    return models


def _named(name: str, pretrained: bool) -> Classifier:
    if pretrained:
        try:
            with asked_for(model=name, pretrained=True):
                model = timm.create_model(name, pretrained=True)
        except OSError as error:
            raise InputError(f"the weights of {name} cannot be fetched: {error}") from error
    else:
        model = create_network(Recipe(model=name), 1000)
    config = resolve_model_data_config(model)
    recipe = Recipe(
        model=name,
        img_size=config["input_size"][-1],
        in_chans=config["input_size"][0],
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
    )
    count = int(getattr(model, "num_classes", 1000))
    return Classifier(
        model=model,
        recipe=with_normalisation(recipe, model),
        classes=ImageNetInfo().label_names() if count == 1000 and pretrained else None,
        num_classes=count,
        source=name,
        label=name,
    )


def try_size(classifier: Classifier, img_size: int) -> None:
    """Raise InputError if a model does not take images of a size, before anything is computed."""
    channels = classifier.recipe.in_chans
    try:
        with eval_mode(classifier.model), torch.no_grad():
            classifier.model(torch.zeros(1, channels, img_size, img_size, device=classifier.process.device))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise InputError(f"{classifier.label} cannot be used with --img-size {img_size}: {error}") from error


def batches(images: Sequence[ImageFile], size: int) -> list[Sequence[ImageFile]]:
    """Return the images in batches."""
    return [images[first : first + size] for first in range(0, len(images), size)]


def inputs_of(classifier: Classifier, batch: Sequence[ImageFile]) -> Tensor:
    """Return a model's input for a batch, (B, channels, height, width), on the device.

    Raises:
        DataError: If a file cannot be decoded.
    """
    return torch.stack([classifier.view.tensor(image) for image in batch]).to(classifier.process.device)


def sources_of(classifiers: Sequence[Classifier]) -> dict[str, list[dict[str, str]]]:
    """Return label and source of each model, as the files of results have them."""
    return {"networks": [{"label": classifier.label, "source": classifier.source} for classifier in classifiers]}


def folder_of(root: Path, classifier: Classifier, classifiers: Sequence[Classifier]) -> Path:
    """Return the folder of a model's files: ``root``, or with several models a subfolder named after its label."""
    if len(classifiers) == 1:
        return root
    names = [re.sub(r"[/\\\0]", "-", each.label).strip(". ") or "network" for each in classifiers]
    number = next(number for number, each in enumerate(classifiers) if each is classifier)
    alike = len({name.casefold() for name in names}) < len(names)
    return root / (f"{number + 1}-{names[number]}" if alike else names[number])
