"""Choose a recipe for images, by their size and number."""

import logging
import os
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, TypeVar

import timm
from huggingface_hub import constants

from ....errors import DataError, counted
from ...data.datasets import Samples
from ...data.images import open_image
from ...recipes.recipe import Recipe, load_recipe

D = TypeVar("D")

_LOOKED_AT = 100  # images, for their size
_SIZES = (64, 96, 128, 160, 192, 224)
_SMALL = 48  # shorter side up to which a stem that downsamples would leave too little
_ENLARGED = 1.15  # images are enlarged by at most so much
_MANY = 50_000  # images that are worth the larger model
HELD_OUT = 0.2  # share of the images to validate on, if the data have no split
_SECONDS = 5.0  # to wait for the hub


def choose_recipe(given: dict[str, Any], *, pretrained: bool = True) -> tuple[Recipe, str]:
    """Return a recipe for the size and number of the images, and a line that says why.

    Args:
        given: Fields that are given, ``data`` among them; they are kept.
        pretrained: Whether to start from pretrained weights if they can be had.

    Raises:
        InputError: If the data cannot be used.
    """
    training, drawn = _open(given)
    count, side = len(training), _side(training)
    # A model that is given may have no stem that can be replaced, and a checkpoint has the stem that it has.
    small = side <= _SMALL and not {"model", "initial"} & given.keys()
    model = given.get("model", "sa_resnet18" if small or count < _MANY else "sa_resnet50")
    why_not = ""
    if small or "initial" in given:
        name = "small" if small else "finetune"
    elif not pretrained or {"model_args", "small_stem"} & given.keys():
        name = "photos"
    else:
        why_not = why_not_pretrained(model)
        name = "photos" if why_not else "finetune"
    recipe = load_recipe(name)
    batch_size = given.get("batch_size") or min(count, max(8, min(64, 2 ** (count // 16).bit_length() // 2)))
    steps, least, most = (1500, 10, 40) if name == "finetune" else (3000, 20, 100)
    chosen = {
        "model": model,
        "model_args": {} if "initial" in given else recipe.model_args,
        "img_size": recipe.img_size if small else max(size for size in _SIZES if size <= max(64, _ENLARGED * side)),
        "batch_size": batch_size,
        "lr": recipe.lr * batch_size / recipe.batch_size,
        "epochs": min(most, max(least, round(steps * batch_size / count))),
        **drawn,
    }
    recipe = recipe.replaced(**{**chosen, **given})
    start = f", from scratch ({why_not})" if why_not else ""
    held = f", {100 * HELD_OUT:.0f} % of the images held out for validation" if drawn else ""
    images = f"{counted(count, 'training image')} of about {counted(round(side), 'pixel')}"
    return recipe, (
        f"{images}: recipe {name}, {recipe.model} at "
        f"{recipe.img_size} pixels, {counted(recipe.epochs, 'epoch')}{start}{held}. --recipe NAME takes another"
    )


def why_not_pretrained(model: str) -> str:
    """Return why the pretrained weights of a model cannot be had; empty if they can, and are now in the cache."""
    if not os.environ.get("HF_HUB_OFFLINE"):
        try:  # timm would try for a minute
            with urllib.request.urlopen(constants.ENDPOINT, timeout=_SECONDS):
                pass
        except (OSError, ValueError):
            return f"{constants.ENDPOINT} cannot be reached for pretrained weights"
    try:
        timm.create_model(model, pretrained=True)
    except Exception as error:  # networks, hubs and files fail in many ways
        return f"no pretrained weights: {(str(error) or type(error).__name__).splitlines()[0][:160]}"
    return ""


def open_or_divide(opened: Callable[..., D], given: dict[str, Any]) -> tuple[D, dict[str, float]]:
    """Return the training data, and the field that holds out a share for validation if they have no split.

    Args:
        opened: Opens the data; takes the field ``val_fraction``.
        given: Fields that are given.

    Raises:
        DataError: If the data cannot be used either way.
    """
    with _silent():
        try:
            return opened(), {}
        except DataError:
            if "val_fraction" in given:
                raise
            drawn = {"val_fraction": HELD_OUT}
            try:
                return opened(**drawn), drawn
            except DataError:
                return opened(), {}  # raises what is wrong without a share, too


def _open(given: dict[str, Any]) -> tuple[Any, dict[str, float]]:
    from .task import Classification

    def opened(**drawn: float) -> Any:
        recipe = Recipe().replaced(**{**drawn, **given, "check_images": False})
        return Classification.open(recipe, check=False).training

    return open_or_divide(opened, given)


def _side(training: Any) -> float:
    """Return the median shorter side of some images in pixels; that of photographs where files cannot be looked at."""
    paths = [name for name in getattr(training, "names", ()) if isinstance(name, str)]
    sides = []
    for path in paths[:: max(1, len(paths) // _LOOKED_AT)] if isinstance(training, Samples) else []:
        try:
            with open_image(path) as image:
                sides.append(min(image.size))
        except (OSError, ValueError, SyntaxError):  # reported when all images are checked
            continue
    return median(sides) if sides else _SIZES[-1]


@contextmanager
def _silent() -> Iterator[None]:
    """Leave the warnings about the data to the run, which opens them again."""
    logger = logging.getLogger("shuffle_attention")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
