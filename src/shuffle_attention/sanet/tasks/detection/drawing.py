"""Drawings of detections: boxes, masks, names and scores."""

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

__all__ = ["draw_detections"]


def draw_detections(
    image: Image.Image,
    output: Mapping[str, Tensor],
    names: Sequence[str],
    *,
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
    scale: int | None = None,
) -> Image.Image:
    """Return a copy of an image with the detections on it, the smallest on top, each in another colour.

    Args:
        image: The image that the detector received.
        output: ``boxes`` (N, 4) as x1, y1, x2, y2 in pixels, ``labels`` (N,), ``scores`` (N,) unless it is the
            truth, and perhaps ``masks`` (N, 1, H, W) in [0, 1].
        names: Name of each label from 1 on.
        threshold: Lowest score that is drawn.
        mask_threshold: Value from which on a pixel is inside a mask.
        scale: Upscaling factor; by default large enough for labels to be readable.
    """
    scale = scale or max(1, round(640 / max(image.size)))
    canvas = image.convert("RGB").resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    pixels = functional.pil_to_tensor(canvas)
    scores = output.get("scores")
    shown = torch.arange(len(output["boxes"])) if scores is None else (scores >= threshold).nonzero().flatten()
    x1, y1, x2, y2 = output["boxes"][shown].float().unbind(1)
    shown = shown[((x2 - x1) * (y2 - y1)).argsort(descending=True)].cpu()
    if not len(shown):
        return canvas
    colours: list[str | tuple[int, int, int]] = [_colour(index) for index in range(len(shown))]
    if "masks" in output:
        masks = output["masks"].cpu()[shown, 0] >= mask_threshold
        # torchvision paints black what two masks share; it is the smaller one's here.
        masks &= masks.flip(0).cumsum(0).flip(0) == 1
        masks = masks.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        pixels = draw_segmentation_masks(pixels, masks, alpha=0.45, colors=colours)
    titles = [_name(names, label) for label in output["labels"].cpu()[shown].tolist()]
    if scores is not None:
        titles = [f"{title}: {score:.2f}" for title, score in zip(titles, scores.cpu()[shown].tolist(), strict=True)]
    boxes = (output["boxes"].float().cpu()[shown] * scale).round()
    # A title stands in its box, and must not hide what is small.
    font_size = int((boxes[:, 3] - boxes[:, 1]).median().div(4).clamp(9, 14))
    limit = torch.tensor([canvas.width - 1, canvas.height - 1] * 2)
    pixels = draw_bounding_boxes(
        pixels,
        boxes.clamp(min=0).minimum(limit),
        titles,
        colors=colours,
        width=2,
        font=_font(),
        font_size=font_size,
        fill_labels=True,
    )
    return functional.to_pil_image(pixels)


def _font() -> str:
    """Return the path of the font that comes with matplotlib."""
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf")


def _name(names: Sequence[str], label: int) -> str:
    return names[label - 1] if 1 <= label <= len(names) else f"label {label}"


def _colour(index: int) -> tuple[int, int, int]:
    """Return a colour; hues a golden section apart are never close to those just before."""
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618 % 1, 0.75, 1.0)
    return int(255 * red), int(255 * green), int(255 * blue)
