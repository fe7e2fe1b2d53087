"""Maps drawn over the model's input, with class, probability and a colour scale."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ...explain.maps import Explanation
from ..charts import drawing, show_image
from ..tasks.classification.predictor import Classifier

PER_PAGE = 10  # rows of a comparison
_SIDE = 256  # pixels that the side of an overlay is enlarged to, about


@dataclass(frozen=True)
class Overlay:
    """The content of one overlay.

    Attributes:
        pixels: The part of the image that the model sees, as colours, (height, width, 3) in [0, 1].
        share: The map, (height, width) in [0, 1].
        name: The class explained.
        probability: Its probability.
        predicted: The most probable class if it differs.
    """

    pixels: Tensor
    share: Tensor
    name: str
    probability: float
    predicted: str | None = None

    def title(self) -> str:
        """Return the class with its probability, and on a second line the predicted class and missing evidence."""
        more = [f"predicted: {_short(self.predicted)}"] if self.predicted else []
        more += ["no evidence at any position"] if self.empty else []
        return f"{_short(self.name)}  {100 * self.probability:.1f} %" + ("\n" + "; ".join(more) if more else "")

    @property
    def empty(self) -> bool:
        """Whether the map is flat, most often because all evidence was against the class."""
        return bool(self.share.max() <= self.share.min())


def overlay_of(classifier: Classifier, image: Image.Image, explanation: Explanation, number: int = 0) -> Overlay:
    """Return the overlay of one image of an explained batch, enlarged so that the image is not drawn as a mosaic."""
    share = explanation.shares()[number].cpu()
    pixels = classifier.pixels(image, max(1, _SIDE // len(share)))
    share = functional.interpolate(share[None, None], pixels.shape[:2], mode="bilinear")[0, 0]
    explained, predicted = int(explanation.classes[number]), int(explanation.predicted[number])
    probability = float(explanation.probabilities[number])
    names = classifier.names
    return Overlay(pixels, share, names[explained], probability, names[predicted] if predicted != explained else None)


def blended(overlay: Overlay) -> Image.Image:
    """Return the model's input blended with the map, in its size and without text; unchanged if the map is empty."""
    pixels = np.asarray(overlay.pixels, dtype=np.float64)
    if not overlay.empty:
        colours = _colours()(np.asarray(overlay.share))
        pixels = pixels + (colours[..., :3] - pixels) * colours[..., 3:]
    return Image.fromarray(np.round(255 * pixels).astype(np.uint8))


def draw_overlay(overlay: Overlay, title: str, path: Path) -> None:
    """Draw what the model sees, and beside it the same under the map."""
    with drawing(path, 6.4, 3.5) as figure:
        figure.suptitle(title, fontsize=9)
        left, right = figure.subplots(1, 2)
        show_image(left, overlay.pixels)
        left.set_title("what the model sees", fontsize=9)
        show_image(right, blended(overlay))
        right.set_title(overlay.title(), fontsize=9)
        _draw_scale(figure, [left, right])


def draw_comparison(rows: Sequence[tuple[str, Sequence[Overlay]]], columns: Sequence[str], title: str, path: Path):
    """Draw a row for each image, given with its name, and after the image a column for the overlay of each model."""
    with drawing(path, 2.0 * (len(columns) + 1) + 0.7, 2.15 * len(rows) + 0.6, title) as figure:
        grid = figure.subplots(len(rows), len(columns) + 1, squeeze=False)
        for row, (name, overlays) in zip(grid, rows, strict=True):
            show_image(row[0], overlays[0].pixels)
            row[0].set_title(_short(name, 26), fontsize=7)
            for axes, overlay in zip(row[1:], overlays, strict=True):
                show_image(axes, blended(overlay))
                axes.set_title(overlay.title(), fontsize=8)
        for axes, column in zip(grid[0], ["image", *columns], strict=True):
            axes.set_title(f"{column}\n{axes.get_title()}", fontsize=8)
        _draw_scale(figure, list(grid.flat))


def _colours() -> ListedColormap:
    """Return turbo with opacity that grows with the evidence: the image shows where there is little."""
    colours = colormaps["turbo"](np.linspace(0, 1, 256))
    colours[:, 3] = np.linspace(0.25, 0.65, 256)
    return ListedColormap(colours)


def _draw_scale(figure: Any, axes: list[Any]) -> None:
    rows = len({ax.get_subplotspec().rowspan.start for ax in axes})
    colours = ScalarMappable(Normalize(0, 1), _colours())
    shrink, aspect = (0.8, 20) if rows == 1 else (min(0.8, 2.5 / rows), 30)
    bar = figure.colorbar(colours, ax=axes, fraction=0.05, pad=0.02, shrink=shrink, aspect=aspect)
    bar.set_ticks([0, 1])
    bar.set_ticklabels(["lowest", "highest"], fontsize=8)
    bar.set_label("evidence, within each map", fontsize=8, labelpad=-22)


def _short(text: str, most: int = 24) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
