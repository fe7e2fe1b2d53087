"""Published figures of ResNets with attention, each with its source."""

from dataclasses import dataclass
from functools import cache
from importlib import resources

import yaml


@dataclass(frozen=True)
class Published:
    """What a source prints of a network on ImageNet-1k; None where it prints nothing.

    Attributes:
        attention: Name in the family.
        depth: Layers of the ResNet.
        source: Key of the source.
        url: Where it is, at the commit that was read.
        millions: Parameters, in the units of the source.
        gflops: Multiply-adds at 224 pixels, in the units of the source.
        top1: Accuracy in percent.
        top5: Accuracy in percent.
        notes: Keys of what explains a difference from what is measured here.
    """

    attention: str
    depth: int
    source: str
    url: str
    millions: float | None
    gflops: float | None
    top1: float | None
    top5: float | None
    notes: tuple[str, ...]


@cache
def _content() -> dict:
    return yaml.safe_load(
        (resources.files("shuffle_attention.sanet.profile") / "published.yaml").read_text(encoding="utf-8")
    )


def published(attention: str, depth: int) -> Published | None:
    """Returns the published figures of a network, or None where no source that could be read has any."""
    content = _content()
    for row in content["rows"]:
        if (row["attention"], row["depth"]) == (attention, depth):
            notes, url = tuple(row["notes"]), content["sources"][row["source"]]["url"]
            return Published(**{**row, "notes": notes, "url": url})
    return None


def notes() -> dict[str, str]:
    """Returns the explanations of differences by their keys."""
    return _content()["notes"]


def sources() -> dict[str, str]:
    """Returns the address of each source and who published it."""
    return {name: f"{source['by']}, {source['url']}" for name, source in _content()["sources"].items()}
