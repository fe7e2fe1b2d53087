"""Scores of a detector by class: average precision, precision over recall, and a confusion matrix."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_area, box_convert, box_iou

from ...data.coco import CocoData
from .coco_scores import evaluator_of

IOU = 0.5  # overlap from which on a detection is right
_THRESHOLDS = np.round(np.arange(0.05, 0.96, 0.05), 2)


@dataclass(frozen=True)
class ClassScore:
    """Scores of one class, in [0, 1], or None if it has no objects.

    Attributes:
        name: The class.
        objects: Number of its objects, without crowds.
        AP: Average precision over overlaps of 0.5 to 0.95, of masks if ``kind`` is that.
        AP50: Average precision at an overlap of 0.5.
        recall: Share of its objects that are detected, at the threshold.
        precision: Share of its detections that are right, at the threshold.
    """

    name: str
    objects: int
    AP: float | None
    AP50: float | None
    recall: float | None
    precision: float | None


@dataclass(frozen=True)
class ClassScores:
    """Scores of all classes.

    Attributes:
        threshold: Score from which on detections count: that of the highest mean F1 of the classes.
        classes: Scores of each class.
        recall: Recall of the points of the curves, (101,).
        precision: Precision at these points by class, at an overlap of 0.5; classes without objects are missing.
        confusion: Objects by true class (rows, the last is the background) and detected class (columns, the last is
            "missed"), at the threshold.
    """

    threshold: float
    classes: list[ClassScore]
    recall: list[float]
    precision: dict[str, list[float]]
    confusion: list[list[int]]

    def to_dict(self) -> dict[str, Any]:
        """Return the scores for JSON."""
        names = [each.name for each in self.classes]
        return {
            "score_threshold": self.threshold,
            "by_class": [asdict(each) for each in self.classes],
            "precision_recall": {"recall": self.recall, "precision": self.precision},
            "confusion": {"rows": [*names, "background"], "columns": [*names, "missed"], "counts": self.confusion},
        }


def scores_by_class(
    data: CocoData,
    results: Sequence[Mapping[str, Any]],
    *,
    masks: bool = False,
    image_ids: Sequence[int] | None = None,
) -> ClassScores:
    """Return the scores of detections, COCO's records, by class, on all images or those that are named."""
    evaluation = evaluator_of(data, results, "segm" if masks else "bbox", image_ids)
    # Thresholds of overlap, points of recall, classes; -1 without objects. All sizes, the 100 best detections.
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
    has_objects = precision[0].max(0) > -1
    points = np.asarray(evaluation.params.recThrs)
    evaluated = {image["id"] for image in data.images} if image_ids is None else set(image_ids)
    labels, crowds = data.labels, {each["id"] for each in data.annotations if each["iscrowd"]}
    counts = np.zeros(len(labels), np.int64)
    for each in data.annotations:
        if not each["iscrowd"] and each["image_id"] in evaluated:
            counts[labels[each["category_id"]] - 1] += 1
    # Whether each detection is right, and the ids of the objects that they match.
    pairs = [key.split("_") for key, overlap in evaluation.eval["matched"].items() if overlap >= IOU]
    matched = {int(detection) - 1: int(truth) for detection, truth in pairs}
    detected, right = np.zeros((2, len(_THRESHOLDS), len(labels)))
    for index, record in enumerate(results):
        if matched.get(index) not in crowds:  # detections inside a crowd do not count
            reached, label = record["score"] >= _THRESHOLDS, labels[record["category_id"]] - 1
            detected[reached, label] += 1
            right[reached, label] += index in matched
    recall, correct = right / np.maximum(counts, 1), right / np.maximum(detected, 1)
    f1 = 2 * recall * correct / np.maximum(recall + correct, 1e-9)
    best = int(f1[:, has_objects].mean(1).argmax()) if has_objects.any() else 0
    classes = []
    for index, category in enumerate(data.categories):
        values = [
            precision[:, :, index].mean(),
            precision[0, :, index].mean(),
            recall[best, index],
            correct[best, index],
        ]
        known = [float(value) for value in values] if has_objects[index] else [None] * 4
        classes.append(ClassScore(category["name"], int(counts[index]), *known))
    curves = {each.name: precision[0, :, index].tolist() for index, each in enumerate(classes) if has_objects[index]}
    threshold = float(_THRESHOLDS[best])
    return ClassScores(threshold, classes, points.tolist(), curves, _confusion(data, results, threshold, evaluated))


def _confusion(
    data: CocoData, results: Sequence[Mapping[str, Any]], threshold: float, evaluated: set[int]
) -> list[list[int]]:
    """Return counts of true and detected classes; pairs of the largest overlap first, whatever their classes."""
    labels, count = data.labels, len(data.categories)
    matrix = np.zeros((count + 1, count + 1), np.int64)
    detected: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for record in results:
        if record["score"] >= threshold:
            detected[record["image_id"]].append(record)
    for index, image in enumerate(data.images):
        if image["id"] not in evaluated:
            continue
        objects, records = data.objects(index), detected[image["id"]]
        true = [labels[each["category_id"]] - 1 for each in objects]
        guesses = [labels[record["category_id"]] - 1 for record in records]
        truth, boxes = _corners(objects), _corners(records)
        crowds = torch.tensor([bool(each["iscrowd"]) for each in objects], dtype=torch.bool)
        overlaps = box_iou(truth, boxes)
        overlaps[crowds] = 0
        free_objects, free_records = (
            {*range(len(objects))} - {*crowds.nonzero().flatten().tolist()},
            {*range(len(records))},
        )
        for pair in overlaps.flatten().argsort(descending=True, stable=True).tolist():
            row, column = divmod(pair, max(1, len(records)))
            if overlaps[row, column] < IOU:
                break
            if row in free_objects and column in free_records:
                free_objects.remove(row)
                free_records.remove(column)
                matrix[true[row], guesses[column]] += 1
        # Detections inside a crowd are not wrong.
        inside = _shares_inside(truth[crowds], boxes)
        for row in free_objects:
            matrix[true[row], count] += 1
        for column in free_records:
            matrix[count, guesses[column]] += int(inside[column] < IOU)
    return matrix.tolist()


def _corners(records: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    """Return boxes (N, 4) as x1, y1, x2, y2."""
    return box_convert(torch.tensor([record["bbox"] for record in records]).view(-1, 4).double(), "xywh", "xyxy")


def _shares_inside(crowds: torch.Tensor, boxes: torch.Tensor) -> list[float]:
    """Return the largest share of each box (N, 4) that lies in a crowd."""
    if not len(crowds):
        return [0.0] * len(boxes)
    low = torch.maximum(crowds[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(crowds[:, None, 2:], boxes[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(2)
    return (shared / box_area(boxes).clamp(min=1e-9)).amax(0).tolist()
