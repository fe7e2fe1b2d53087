"""Choose a recipe for images with objects, by their number and sizes."""

import math
from typing import Any

import numpy as np

from ....errors import counted
from ....models.detectors import ARCHITECTURES
from ...data.coco import CocoData
from ...recipes.recipe import load_recipe
from ..classification.choice import HELD_OUT, open_or_divide, why_not_pretrained
from .predictor import open_coco
from .recipe import DetectionRecipe

_SIDES = (160, 480)  # shorter sides of the input between which images are scaled
_STEP = 32  # pixels, the stride of the last map
_RATIO = 1.7  # of the longest side of the input to the shorter
_SMALLEST = 4  # side of an anchor in pixels
_LEVELS = 5
_STEPS = 3000


def choose_recipe(given: dict[str, Any], *, pretrained: bool = True) -> tuple[DetectionRecipe, str]:
    """Return a recipe for the number and sizes of the images and objects, and a line that says why.

    Args:
        given: Fields that are given, ``data`` among them; they are kept.
        pretrained: Whether to start from pretrained weights if they can be had.

    Raises:
        InputError: If the data cannot be used.
    """
    data, drawn = _open(given)
    objects = [each for each in data.annotations if not each["iscrowd"]]
    recipe = load_recipe("objects", DetectionRecipe)
    arch = given.get("arch", "mask_rcnn" if data.has_masks else "faster_rcnn")
    low, high = _SIDES
    shorter = float(np.median([min(image["width"], image["height"]) for image in data.images]))
    side = int(min(high, max(low, _STEP * round(shorter / _STEP))))
    side = given["min_size"][-1] if given.get("min_size") else side
    small = np.percentile([math.sqrt(each["bbox"][2] * each["bbox"][3]) for each in objects], 10) * side / shorter
    anchor = 2 ** round(math.log2(max(_SMALLEST, min(32.0, float(small)))))
    batch_size = given.get("batch_size") or max(1, min(recipe.batch_size, len(data) // 8))
    chosen: dict[str, Any] = {
        "arch": arch,
        "min_size": [side],
        "max_size": max(round(_RATIO * side), *given.get("min_size", [0])),
        "anchor_sizes": [anchor * 2**level for level in range(_LEVELS)] if ARCHITECTURES[arch].anchors else [],
        "batch_size": batch_size,
        "lr": recipe.lr * batch_size / recipe.batch_size,
        "epochs": min(60, max(12, round(_STEPS * batch_size / len(data)))),
        **drawn,
    }
    start = ""
    if pretrained and not {"weights", "pretrained", "initial", "backbone_args"} & given.keys():
        why_not = why_not_pretrained(given.get("backbone", recipe.backbone))
        chosen["pretrained"] = not why_not
        start = f", from scratch ({why_not})" if why_not else ", from pretrained weights"
    recipe = recipe.replaced(**{**chosen, **given})
    held = f", {HELD_OUT:.0%} of the images held out for validation" if drawn else ""
    images = f"{counted(len(data), 'training image')} with {counted(len(objects), 'object')}"
    return recipe, (
        f"{images}{'' if data.has_masks else ' without masks'}: recipe objects, {recipe.title} at "
        f"{recipe.min_size[-1]} pixels, {counted(recipe.epochs, 'epoch')}{start}{held}. --recipe NAME takes another"
    )


def _open(given: dict[str, Any]) -> tuple[CocoData, dict[str, float]]:
    def opened(**drawn: float) -> CocoData:
        # Whether objects must have masks is chosen later; for this architecture they need none.
        recipe = DetectionRecipe().replaced(**{**drawn, **given, "arch": "faster_rcnn"})
        return open_coco(recipe, "train", "val", check=False)[0]

    return open_or_divide(opened, given)
