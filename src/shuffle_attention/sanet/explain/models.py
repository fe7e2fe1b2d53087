"""The networks that are looked at: from checkpoints, or by their names in timm."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
from timm.data import ImageNetInfo, resolve_model_data_config
from torch import nn

from ...errors import InputError, asked_for
from ..network import create_network, restore_network, with_normalisation
from ..recipes.recipe import Recipe
from .classes import class_index, readable
from .view import View


@dataclass(frozen=True)
class ExplainedModel:
    """A network with what is needed to look at it.

    Attributes:
        label: What it is called in pictures and tables.
        source: File or name that it comes from.
        model: The network, on the CPU.
        view: How it sees images.
        classes: Names of its classes as it was trained with, where they are known.
        names: The same as people read them; numbers where they are not known.
    """

    label: str
    source: str
    model: nn.Module
    view: View
    classes: list[str] | None
    names: list[str]

    def target(self, asked: str) -> int:
        """Returns the number of a class; raises InputError where there is none such."""
        return class_index(asked, self.classes, len(self.names))


def open_models(
    sources: Sequence[str | os.PathLike],
    *,
    labels: Sequence[str] = (),
    pretrained: bool = False,
    ema: bool | None = None,
    img_size: int | None = None,
    of_weights: str | None = None,
) -> list[ExplainedModel]:
    """Returns the networks in checkpoints, or of timm by their names.

    Args:
        sources: Checkpoints, or names of models that are no files.
        labels: What to call them; by default the models' names, or where these are the same the checkpoints' folders.
        pretrained: Whether a named model gets timm's weights, which are fetched; else it is initialised afresh.
        ema: Whether to take averaged weights of checkpoints; None takes them where there are some.
        img_size: Side of the input in pixels; that which they were trained with by default.
        of_weights: The model that checkpoints have weights of which do not say it themselves.

    Raises:
        InputError: If there is no such checkpoint or model, or the labels are not one for each.
    """
    if labels and (len(labels) != len(sources) or len(set(labels)) < len(labels)):
        raise InputError(f"labels must be different, one for each of {len(sources)} networks, got {', '.join(labels)}")
    found = []
    for source in map(str, sources):
        if not Path(source).exists() and timm.is_model(source):
            found.append((source, *_named(source, pretrained)))
        else:
            restored = restore_network(source, ema=ema, settings={"model": of_weights} if of_weights else None)
            found.append((source, restored.model, restored.recipe, restored.classes, restored.num_classes))
    if not labels:
        labels = [recipe.model for _, _, recipe, _, _ in found]
        if len(set(labels)) < len(labels):
            labels = [Path(source).resolve().parent.name for source, *_ in found]
        if len(set(labels)) < len(labels):
            labels = [str(source) for source, *_ in found]
        if len(set(labels)) < len(labels):
            labels = [f"{label} ({number})" for number, label in enumerate(labels, 1)]
    other = {} if img_size is None else {"img_size": img_size}
    return [
        ExplainedModel(label, source, model.eval(), View(recipe.replaced(**other)), classes, readable(classes, count))
        for label, (source, model, recipe, classes, count) in zip(labels, found, strict=True)
    ]


def _named(name: str, pretrained: bool) -> tuple[nn.Module, Recipe, list[str] | None, int]:
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
    classes = ImageNetInfo().label_names() if count == 1000 and pretrained else None
    return model, with_normalisation(recipe, model), classes, count


def folder_of(root: Path, subject: ExplainedModel, subjects: Sequence[ExplainedModel]) -> Path:
    """Returns the folder for a network's files, one for each where there are several, called after its label."""
    if len(subjects) == 1:
        return root
    names = [re.sub(r"[/\\\0]", "-", each.label).strip(". ") or "network" for each in subjects]
    number = next(number for number, each in enumerate(subjects) if each is subject)
    alike = len({name.casefold() for name in names}) < len(names)
    return root / (f"{number + 1}-{names[number]}" if alike else names[number])
