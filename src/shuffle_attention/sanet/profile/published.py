"""Published metrics of ResNets with attention, each with its source, and the paper's table 1 beside our counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import timm
import torch
import yaml

from ...models.attention_resnet import resnet_with
from ..console import console, table
from .costs import Size, size_of


@dataclass(frozen=True)
class Published:
    """Published metrics of a model on ImageNet-1k; None where the source prints nothing.

    Attributes:
        attention: Name of the attention layer.
        depth: Layers of the ResNet.
        source: Key of the source.
        url: Address of the source, at the commit that was read.
        millions: Parameters, in the units of the source.
        gflops: Multiply-adds at 224 pixels, in the units of the source.
        top1: Accuracy in percent.
        top5: Accuracy in percent.
        notes: Keys of the notes that explain differences from what is measured here.
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
    file = resources.files("shuffle_attention.sanet.profile") / "published.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def published(attention: str, depth: int) -> Published | None:
    """Return the published metrics of a model, or None if no source that could be verified has any."""
    content = _content()
    for row in content["rows"]:
        if (row["attention"], row["depth"]) == (attention, depth):
            notes, url = tuple(row["notes"]), content["sources"][row["source"]]["url"]
            return Published(**{**row, "notes": notes, "url": url})
    return None


def notes() -> dict[str, str]:
    """Return the explanations of differences by their keys."""
    return _content()["notes"]


def sources() -> dict[str, str]:
    """Return publisher and address of each source."""
    return {name: f"{source['by']}, {source['url']}" for name, source in _content()["sources"].items()}


def compare_with_paper(layers: Sequence[tuple[str, int]]) -> list[tuple[str, Size, Published | None]]:
    """Return name, size at 224 pixels as published sizes are counted, and published metrics of ResNets.

    The ResNets are given by attention layer and depth.
    """
    rows = []
    for attention, depth in layers:
        name, options = resnet_with(attention, depth)
        with torch.device("meta"):
            model = timm.create_model(name, **options)
        rows.append((name, size_of(model, 3, 224), published(attention, depth)))
    return rows


def print_published(compared: list[tuple[str, Size, Published | None]]) -> None:
    """Print measured beside published numbers, with a note on each difference."""
    keys = {key: str(number) for number, key in enumerate(notes(), 1)}
    letters = {name: chr(ord("a") + number) for number, name in enumerate(sources())}
    paper = table(
        ("", "M", "publ.", "GFLOPs", "all", "publ.", "top-1", "top-5", "src", "notes"),
        text=("", "notes"),
        title="table 1 of the paper: here | published",
    )
    for name, size, printed in compared:
        millions = f"{size.parameters / 1e6:.3f}"
        gflops = f"{size.multiply_adds / 1e9:.3f}", f"{size.with_pointwise / 1e9:.3f}"
        if printed is None:
            paper.add_row(name, millions, "-", *gflops, "-", "-", "-", "-", "")
            continue
        metrics = _digits(printed.gflops, 3), _digits(printed.top1, 2), _digits(printed.top5, 2)
        explained = ",".join(keys[note] for note in printed.notes)
        paper.add_row(
            name, millions, _digits(printed.millions, 2), *gflops, *metrics, letters[printed.source], explained
        )
    console.print(paper)
    console.print(
        "M: millions of parameters; all: GFLOPs with 2 for each value of a BatchNorm, 1 of a ReLU or max pooling"
    )
    for key, number in keys.items():
        console.print(f"{number}: {' '.join(notes()[key].split())}")
    for source, publisher in sources().items():
        console.print(f"{letters[source]}: {publisher}")
    console.print("-: no published metric that could be verified")


def _digits(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
