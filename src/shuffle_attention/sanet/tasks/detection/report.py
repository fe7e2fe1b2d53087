"""Report of a detector: COCO's scores, and detections beside the annotated objects."""

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
from .coco_scores import COCO_SCORES, score_text
from .predictor import draw_detections
from .samples import UNREADABLE, CocoSamples, detection_transform

_LONGEST = 360  # pixels of an image, so that the names on it can be read
_IMAGES = 8
_THRESHOLD = 0.5


def detector_sections(
    model: nn.Module, data: CocoData, best: Mapping[str, float], process: Process, *, masks: bool, precision: str
) -> list[Section]:
    """Return the sections of a detector in evaluation mode: scores of its best epoch, and some images.

    Args:
        model: The detector.
        data: Validation images.
        best: Metrics of the best epoch.
        process: This process.
        masks: Whether the detector predicts masks.
        precision: fp32, bf16 or fp16.
    """
    kinds = [kind for kind in ("box", "mask") if f"val_{kind}_AP" in best]
    rows = [(kind, [score_text(best[f"val_{kind}_{name}"]) for name in COCO_SCORES]) for kind in kinds]
    return [
        Section("COCO scores over the validation images", "detection/coco", {"names": list(COCO_SCORES), "rows": rows}),
        Section("Some validation images", "detection/detections", _examples(model, data, process, masks, precision)),
    ]


@torch.inference_mode()
def _examples(model: nn.Module, data: CocoData, process: Process, masks: bool, precision: str) -> dict[str, object]:
    names = data.names
    samples = CocoSamples(data, masks=masks and data.has_masks)
    samples.transform = detection_transform(training=False)
    count = min(_IMAGES, len(samples))
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
                "detected": _drawn(image, {name: value.float().cpu() for name, value in output.items()}, names),
                "objects": len(target["labels"]),
                "detections": int((output["scores"] >= _THRESHOLD).sum()),
            }
        )
    return {"cards": cards, "threshold": _THRESHOLD, "of": len(samples)}


def _drawn(image: Tensor, output: Mapping[str, Tensor], names: list[str]) -> str:
    """Return an image with its objects, drawn at the size at which it is shown, so that names stay readable."""
    canvas = to_pil_image(image)
    factor = min(1.0, _LONGEST / max(canvas.size))
    output = {**output, "labels": output["labels"].long()}
    if factor < 1:
        size = max(1, round(canvas.width * factor)), max(1, round(canvas.height * factor))
        canvas = canvas.resize(size, Image.Resampling.LANCZOS)
        output["boxes"] = output["boxes"] * factor
        if "masks" in output:
            output["masks"] = functional.interpolate(output["masks"], size[::-1], mode="bilinear", antialias=True)
    scale = max(1, _LONGEST // max(canvas.size))
    return embedded(draw_detections(canvas, output, names, threshold=_THRESHOLD, scale=scale), _LONGEST)
