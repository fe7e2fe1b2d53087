"""Random batches of the training images of a classifier."""

import random
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ....errors import DataError, InputError
from ...data.datasets import Samples, open_split
from ...data.loading import evaluation_batches
from ...device import Process
from ...network import create_network, with_normalisation
from ...recipes.recipe import Recipe
from .predictor import restore_network


def random_batches(
    source: str, given: dict[str, Any], *, count: int, batch_size: int, seed: int = 0
) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """Return a classifier, and batches of its training images that are drawn without augmentation.

    Args:
        source: A checkpoint, or the name of a model of timm, which is created without weights.
        given: Fields of the recipe.
        count: Number of batches.
        batch_size: Images per batch.
        seed: Seed of the draw, and of a model without weights.

    Raises:
        InputError: If there is no such model or checkpoint, or too few images.
    """
    if Path(source).exists():
        classifier = restore_network(source, settings=given)
        recipe, classes, model = classifier.recipe.replaced(**given), classifier.classes, classifier.model
    elif timm.is_model(source):
        recipe, classes, model = Recipe(model=source).replaced(**given), None, None
    else:
        raise InputError(f"{source} is neither a file nor a model of timm")
    samples = open_split(recipe, "train", classes)
    if not isinstance(samples, Samples):
        raise DataError(f"{recipe.data} is a stream; ranking draws images at random, which needs files")
    if model is None:
        torch.manual_seed(seed)
        model = create_network(recipe, recipe.num_classes or len(samples.classes or ()))
        recipe = with_normalisation(recipe, model)
    if len(samples) < count * batch_size:
        raise DataError(
            f"{count} batches of {batch_size} need {count * batch_size} training images, and {recipe.data} has "
            f"{len(samples)}"
        )
    samples.kept = random.Random(seed).sample(list(samples.kept), count * batch_size)
    loader = evaluation_batches(samples, recipe, Process(torch.device("cpu")), batch_size)
    batches = [(images[labels >= 0], labels[labels >= 0]) for images, labels in loader]
    return model, [(images, labels) for images, labels in batches if len(labels)]
