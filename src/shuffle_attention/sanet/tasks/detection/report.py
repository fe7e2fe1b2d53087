"""Report of a detector: scores, classes, curves, confusions, and detections beside the annotated objects."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2.functional import to_pil_image

from ...charts import new_figure
from ...data.coco import CocoData
from ...data.masks import decode_mask
from ...report.html import embedded, embedded_figure
from ..task import Section
from .class_scores import ClassScores, scores_by_class
from .coco_scores import COCO_SCORES, score_text
from .predictor import class_colour, draw_detections
from .samples import UNREADABLE, CocoSamples, detection_transform

_LONGEST = 560  # pixels of an image, so that the names on it can be read
_IMAGES = 8
_OPEN = 20  # classes that are shown without unfolding, and up to which a table of all pairs is readable
_CURVES = 10  # a chart of more curves cannot be read
_PAIRS = 20


def detector_sections(
    data: CocoData,
    results: Sequence[Mapping[str, Any]],
    best: Mapping[str, float],
    *,
    masks: bool,
    reading: dict[str, Any] | None = None,
) -> list[Section]:
    """Return the sections of a detector: scores of its best epoch, its classes, and some images.

    The results are the detections of that epoch, as COCO records.
    """
    kinds = [kind for kind in ("box", "mask") if f"val_{kind}_AP" in best]
    rows = [(kind, [score_text(best[f"val_{kind}_{name}"]) for name in COCO_SCORES]) for kind in kinds]
    scores = scores_by_class(data, results, masks="mask" in kinds)
    known = sorted(scores.classes, key=lambda each: (each.AP is None, each.AP))
    classes = {"shown": known[:_OPEN], "more": known[_OPEN:], "threshold": scores.threshold}
    samples = CocoSamples(data, masks=masks and data.has_masks, reading=reading)
    return [
        Section("COCO scores over the validation images", "detection/coco", {"names": list(COCO_SCORES), "rows": rows}),
        Section("Scores by class", "detection/classes", {**classes, "kind": "masks" if "mask" in kinds else "boxes"}),
        Section("Precision and recall", "detection/curves", _curves(scores)),
        _confusion(scores),
        Section("Some validation images", "detection/detections", _examples(samples, data, results, scores.threshold)),
    ]


def _curves(scores: ClassScores) -> dict[str, Any]:
    lowest = sorted(scores.precision.items(), key=lambda item: np.mean(item[1]))[:_CURVES]
    figure = new_figure(7.5, 4)
    axes = figure.add_subplot()
    labels = {each.name: label for label, each in enumerate(scores.classes, 1)}
    for name, precision in lowest:
        colour = [0.85 * part / 255 for part in class_colour(labels[name])]
        axes.plot(scores.recall, precision, color=colour, lw=1.2, label=f"{name[:30]} ({np.mean(precision):.2f})")
    if len(scores.precision) > 1:
        mean = np.mean(list(scores.precision.values()), axis=0)
        axes.plot(scores.recall, mean, color="0.2", lw=2.5, label=f"mean of all ({mean.mean():.2f})")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    legend = axes.legend(title="class (AP50)", fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    for text in legend.get_texts():
        text.set_parse_math(False)
    return {"image": embedded_figure(figure), "shown": len(lowest), "left_out": len(scores.precision) - len(lowest)}


def _confusion(scores: ClassScores) -> Section:
    """Return the confusion matrix or, of many classes, what happens most often besides right detections."""
    names = [each.name for each in scores.classes]
    rows, heads = [*names, "background"], [*names, "missed"]
    values: dict[str, Any] = {"threshold": scores.threshold}
    if len(names) <= _OPEN:
        values["heads"] = heads
        values["rows"] = [
            (name, [(count, count / max(1, sum(counts)), column == row) for column, count in enumerate(counts)])
            for row, (name, counts) in enumerate(zip(rows, scores.confusion, strict=True))
        ]
        return Section("Confusion matrix", "detection/confusion", values)
    matrix = np.array(scores.confusion)
    np.fill_diagonal(matrix, 0)
    most = [divmod(int(index), len(heads)) for index in matrix.argsort(axis=None)[::-1][:_PAIRS]]
    pairs = [(rows[row], heads[column], int(matrix[row, column])) for row, column in most if matrix[row, column]]
    return Section("Most often confused", "detection/pairs", {**values, "pairs": pairs, "classes": len(names)})


def _examples(
    samples: CocoSamples, data: CocoData, results: Sequence[Mapping[str, Any]], threshold: float
) -> dict[str, object]:
    names = data.names
    samples.transform = detection_transform(training=False)
    count = min(_IMAGES, len(samples))
    cards, present = [], set()
    for index in (number * len(samples) // count for number in range(count)):
        image, target = samples[index]
        image_id = int(target["image_id"])
        if image_id == UNREADABLE:
            continue
        truth = {name: target[name] for name in ("boxes", "labels")}
        if "masks" in target:
            truth["masks"] = target["masks"][:, None].float()
        records = [record for record in results if record["image_id"] == image_id and record["score"] >= threshold]
        detected = _output(records, data, *image.shape[1:])
        present |= {*truth["labels"].tolist(), *detected["labels"].tolist()}
        cards.append(
            {
                "name": data.images[samples.kept[index]]["file_name"],
                "truth": _drawn(image, truth, names),
                "detected": _drawn(image, detected, names),
                "objects": len(target["labels"]),
                "detections": len(records),
            }
        )
    legend = [(names[label - 1], "#%02x%02x%02x" % class_colour(label)) for label in sorted(present)]  # noqa: UP031
    return {"cards": cards, "threshold": threshold, "of": len(samples), "legend": legend}


def _output(records: Sequence[Mapping[str, Any]], data: CocoData, height: int, width: int) -> dict[str, Tensor]:
    """Return COCO records of one image in the form of a detector's output."""
    boxes = torch.tensor([record["bbox"] for record in records]).view(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    output = {"boxes": boxes, "scores": torch.tensor([record["score"] for record in records])}
    output["labels"] = torch.tensor([data.labels[record["category_id"]] for record in records], dtype=torch.int64)
    masks = [decode_mask(record["segmentation"], height, width) for record in records if "segmentation" in record]
    return {**output, "masks": torch.from_numpy(np.stack(masks))[:, None].float()} if masks else output


def _drawn(image: Tensor, output: Mapping[str, Tensor], names: list[str]) -> str:
    """Return an image with its objects, drawn at the size at which it is shown, so that names stay readable."""
    canvas = to_pil_image(image)
    factor = min(1.0, _LONGEST / max(canvas.size))
    output = {**output}
    if factor < 1:
        size = max(1, round(canvas.width * factor)), max(1, round(canvas.height * factor))
        canvas = canvas.resize(size, Image.Resampling.LANCZOS)
        output["boxes"] = output["boxes"] * factor
        if "masks" in output:
            output["masks"] = functional.interpolate(output["masks"], size[::-1], mode="bilinear", antialias=True)
    scale = max(1, _LONGEST // max(canvas.size))
    return embedded(draw_detections(canvas, output, names, threshold=0, scale=scale), _LONGEST)
