"""The detector that a recipe or a checkpoint speaks of, and its data."""

import os
from dataclasses import dataclass
from typing import Any

from torch import nn

from ....checkpoints import CheckpointError, load_checkpoint, read_checkpoint
from ....errors import InputError
from ....models.detectors import ARCHITECTURES, WITH_WEIGHTS_TRAINABLE, create_detector, require_arguments
from ...data.coco import CocoData, find_split
from ...data.coco_reading import read_coco
from ...network import recipe_of
from .digits import digits_coco
from .recipe import DetectionRecipe

__all__ = ["RestoredDetector", "detector_of", "open_coco", "restore_detector"]


def detector_of(recipe: DetectionRecipe, num_classes: int, *, restored: bool = False) -> nn.Module:
    """Returns the detector of a recipe on the CPU, initialised afresh, or to be filled from a checkpoint.

    Raises:
        InputError: If there is no such detector or backbone, or it does not take these arguments.
    """
    # Weights that are not loaded again must still count in what is frozen because of them.
    trainable_layers, frozen_norm = recipe.trainable_layers, recipe.frozen_norm
    if trainable_layers is None and recipe.has_weights:
        trainable_layers = WITH_WEIGHTS_TRAINABLE
    if recipe.anchor_sizes and ARCHITECTURES[recipe.arch].anchors is None:
        raise InputError(f"{recipe.arch} has no anchors, and the recipe gives some: --anchor-sizes without values")
    try:
        require_arguments(recipe.arch, recipe.detector_args)
    except InputError as error:
        raise InputError(f"{error}; for none of the recipe's: --detector-args '{{}}'") from error
    return create_detector(
        recipe.arch,
        recipe.backbone,
        num_classes,
        weights=None if restored else recipe.weights,
        pretrained=recipe.pretrained and not restored,
        trainable_layers=trainable_layers,
        frozen_norm=recipe.has_weights if frozen_norm is None else frozen_norm,
        min_size=recipe.min_size,
        max_size=recipe.max_size,
        anchor_sizes=recipe.anchor_sizes or None,
        pyramid_channels=recipe.pyramid_channels,
        backbone_options=recipe.backbone_args,
        **recipe.detector_args,
    )


def open_coco(
    recipe: DetectionRecipe, split: str, *, categories: list[dict[str, Any]] | None = None, check: bool = True
) -> CocoData:
    """Returns the training or the validation data of a recipe, looked over.

    Args:
        recipe: Says where the data are, and whether objects must have masks.
        split: "train" or "val".
        categories: Categories that the detector knows.
        check: Whether to open every image file.

    Raises:
        DataError: If there are no such data, or they cannot be used.
    """
    annotations, images = getattr(recipe, f"{split}_annotations"), getattr(recipe, f"{split}_images")
    if annotations is None and recipe.data == "digits":
        return digits_coco(split)
    if annotations is None:
        annotations, images = find_split(recipe.data, split)
    return read_coco(
        annotations,
        images,
        masks=ARCHITECTURES[recipe.arch].masks,
        categories=categories,
        skip_bad=recipe.skip_bad_images,
        check_files=check,
    )


@dataclass(frozen=True)
class RestoredDetector:
    """A detector with its weights, and what its labels mean.

    Attributes:
        model: The detector, on the CPU.
        recipe: The recipe that it was trained with.
        categories: COCO's record of each label, from 1 on.
        weights: Name under which the file holds the weights that were loaded.
    """

    model: nn.Module
    recipe: DetectionRecipe
    categories: list[dict[str, Any]]
    weights: str

    @property
    def names(self) -> list[str]:
        """Name of each label, from 1 on."""
        return [category["name"] for category in self.categories]


def restore_detector(
    path: str | os.PathLike, *, ema: bool | None = None, settings: dict[str, Any] | None = None
) -> RestoredDetector:
    """Returns the detector in a checkpoint of ``sanet detect train``.

    Args:
        path: The checkpoint.
        ema: Whether to take averaged weights; None takes them where the file has them.
        settings: Fields of the recipe to take in place of those of the file, such as ``min_size``.

    Raises:
        CheckpointError: If the file cannot be read, or holds no detector.
    """
    content = read_checkpoint(path)
    recipe, num_classes = recipe_of(content, path, DetectionRecipe)
    categories = content.get("categories")
    if not isinstance(categories, list) or len(categories) != num_classes - 1:
        raise CheckpointError(f"{path} does not say what the {num_classes - 1} labels of its detector mean")
    recipe = recipe.replaced(**(settings or {}))
    model = detector_of(recipe, num_classes, restored=True)
    report = load_checkpoint(model, path, ema=ema)
    return RestoredDetector(model, recipe, categories, report.weights)
