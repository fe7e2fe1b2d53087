"""What the report of a detector shows beside the curves: COCO's figures, and detections beside the truth."""

from collections.abc import Mapping

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.v2.functional import to_pil_image

from ...data.coco import CocoData
from ...device import Process, autocast
from ...report.html import embedded
from ..evaluation import to_device
from ..task import Section
from .drawing import draw_detections
from .samples import UNREADABLE, CocoSamples, detection_transform

__all__ = ["detector_sections"]
_LONGEST = 360  # pixels of a picture, so that the names on it can be read
_PICTURES = 8
_THRESHOLD = 0.5
_FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def detector_sections(
    model: nn.Module, data: CocoData, best: Mapping[str, float], process: Process, *, masks: bool, precision: str
) -> list[Section]:
    """Returns the sections of a detector in evaluation mode, of the figures of its best epoch and of some images.

    Args:
        model: The detector.
        data: Validation images.
        best: Figures of the best epoch.
        process: Where to compute.
        masks: Whether the detector finds masks.
        precision: What it computes in.
    """
    kinds = [kind for kind in ("box", "mask") if f"val_{kind}_AP" in best]
    rows = [(kind, [_figure(best[f"val_{kind}_{name}"]) for name in _FIGURES]) for kind in kinds]
    return [
        Section("COCO figures over the validation images", "detection/coco", {"figures": _FIGURES, "rows": rows}),
        Section("Some validation images", "detection/detections", _pictures(model, data, process, masks, precision)),
    ]


def _figure(value: float) -> str:
    """-1 is COCO's word for a figure that no object counts for."""
    return "-" if value < 0 else f"{value:.3f}"


@torch.inference_mode()
def _pictures(model: nn.Module, data: CocoData, process: Process, masks: bool, precision: str) -> dict[str, object]:
    names = data.names
    samples = CocoSamples(data, masks=masks and data.has_masks)
    samples.transform = detection_transform(training=False)
    count = min(_PICTURES, len(samples))
    cards = []
    for index in (number * len(samples) // count for number in range(count)):
        image, target = samples[index]
        if int(target["image_id"]) == UNREADABLE:
            continue
        with autocast(process, precision):
            output = model(to_device([image], process.device))[0]
        truth = {name: target[name] for name in ("boxes", "labels")}
        if "masks" in target:
            truth["masks"] = target["masks"][:, None].float()
        cards.append(
            {
                "name": data.images[index]["file_name"],
                "truth": _drawn(image, truth, names),
                "found": _drawn(image, {name: value.float().cpu() for name, value in output.items()}, names),
                "objects": len(target["labels"]),
                "detections": int((output["scores"] >= _THRESHOLD).sum()),
            }
        )
    return {"cards": cards, "threshold": _THRESHOLD, "of": len(samples)}


def _drawn(image: Tensor, output: Mapping[str, Tensor], names: list[str]) -> str:
    """Drawn in the size in which it is shown: names would not survive being made smaller."""
    picture = to_pil_image(image)
    factor = min(1.0, _LONGEST / max(picture.size))
    output = {**output, "labels": output["labels"].long()}
    if factor < 1:
        size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
        output["boxes"] = output["boxes"] * factor
        if "masks" in output:
            output["masks"] = functional.interpolate(output["masks"], size[::-1], mode="bilinear", antialias=True)
    scale = max(1, _LONGEST // max(picture.size))
    return embedded(draw_detections(picture, output, names, threshold=_THRESHOLD, scale=scale), _LONGEST)
