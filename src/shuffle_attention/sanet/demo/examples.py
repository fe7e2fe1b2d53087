"""Images to try on the page, which no model has seen in training."""

from collections.abc import Iterable

from PIL import Image

from ..tasks import task_named
from .predictors import Network


def examples_for(kinds: Iterable[str]) -> list[tuple[Image.Image, str]]:
    """Return the example images of the tasks of some kinds, such as "classifier", with their names."""
    return [example for kind in sorted(kinds) for example in task_named(kind).examples()]


def kinds_of(networks: Iterable[Network]) -> set[str]:
    """Return the kinds of the models that were trained on embedded data, whose validation images are examples."""
    return {network.kind for network in networks if network.data == "digits"}
