"""Untrained models in checkpoints as training writes them, for the tests of the page."""

from pathlib import Path
from typing import Any

import torch

from shuffle_attention.checkpoints import write_checkpoint
from shuffle_attention.sanet.network import create_network
from shuffle_attention.sanet.recipes.recipe import load_recipe
from shuffle_attention.sanet.tasks.detection.predictor import detector_of
from shuffle_attention.sanet.tasks.detection.recipe import DetectionRecipe
from shuffle_attention.sanet.tasks.detection.samples import digits_coco


def write_classifier(path: Path, model: str = "resnet10t", **changes: Any) -> Path:
    recipe = load_recipe("digits").replaced(model=model, **changes)
    torch.manual_seed(0)
    content = {"kind": recipe.kind, "recipe": recipe.to_dict(), "num_classes": 10, "classes": list("0123456789")}
    write_checkpoint({**content, "state_dict": create_network(recipe, 10).state_dict()}, path)
    return path


def write_detector(path: Path) -> Path:
    small = {"arch": "faster_rcnn", "min_size": [64], "max_size": 64, "backbone_args": {"channels": [8, 8, 16, 16]}}
    recipe = load_recipe("digits", DetectionRecipe).replaced(**small)
    torch.manual_seed(0)
    model = detector_of(recipe, 11)
    categories = digits_coco("val", 1).categories
    content = {"kind": recipe.kind, "recipe": recipe.to_dict(), "num_classes": 11, "categories": categories}
    write_checkpoint({**content, "state_dict": model.state_dict()}, path)
    return path
