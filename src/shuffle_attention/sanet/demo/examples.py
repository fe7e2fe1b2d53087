"""Images to try on the page, which no network has seen in training."""

from collections.abc import Iterable

from PIL import Image

from ..data.datasets import load_digits
from ..tasks.detection.digits import digits_coco
from .predictors import Network

_PHOTOGRAPHS = 5


def examples_for(kinds: Iterable[str]) -> list[tuple[Image.Image, str]]:
    """Returns images of validation splits with what they are called.

    Args:
        kinds: "classifier" for handwritten digits, one of each; "detector" for digits on photographs.
    """
    found: list[tuple[Image.Image, str]] = []
    kinds = set(kinds)
    if "classifier" in kinds:
        images, _ = load_digits("val")
        for digit in range(10):
            found.append((next(image for image, label in images if label == digit).convert("RGB"), f"digit {digit}"))
    if "detector" in kinds:
        pictures = digits_coco("val", _PHOTOGRAPHS).pictures
        found += [
            (image.convert("RGB"), f"photo {n}") for n, image in enumerate(pictures, 1) if not isinstance(image, str)
        ]
    return found


def kinds_of(networks: Iterable[Network]) -> set[str]:
    """Returns which of the embedded data sets networks were trained with."""
    return {network.kind for network in networks if network.data == "digits"}
