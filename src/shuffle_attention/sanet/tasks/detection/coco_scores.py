"""COCO's average precision of a detector, through faster-coco-eval, and detections as COCO records.

faster-coco-eval computes what pycocotools computes, to rounding, in a twentieth of the time on images with many
objects.

Source: Lin et al., Microsoft COCO, arXiv:1405.0312, and https://cocodataset.org/#detection-eval.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from ....errors import DataError
from ...data.coco import CocoData
from ...data.masks import encode_mask, require_evaluator
from ...device import Process
from ..evaluation import Scores, run_model
from .samples import UNREADABLE

# COCO's name and the evaluator's name of each score.
COCO_SCORES = {
    "AP": "AP_all",
    "AP50": "AP_50",
    "AP75": "AP_75",
    "APs": "AP_small",
    "APm": "AP_medium",
    "APl": "AP_large",
}


def score_text(value: float) -> str:
    """Return a score for a table; the evaluator returns -1 where no object counts."""
    return "-" if value < 0 else f"{value:.3f}"


def evaluate_detector(
    model: nn.Module,
    batches: Iterable[tuple[list[Tensor], list[dict[str, Tensor]]]],
    data: CocoData,
    process: Process,
    *,
    precision: str = "fp32",
    watch: Callable[[int], None] | None = None,
) -> Scores:
    """Return the COCO scores of a detector over the batches of all processes.

    ``results`` are the detections as COCO records, in the order of the image ids. ``watch`` is called with the
    number of images after each batch.

    Raises:
        DataError: If no image can be read.
    """
    detections: dict[int, list[dict[str, Any]]] = {}
    unreadable, masks = 0, False

    def keep(images: list[Tensor], outputs: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]) -> None:
        nonlocal unreadable, masks
        for output, target in zip(outputs, targets, strict=True):
            masks = masks or "masks" in output
            image_id = int(target["image_id"])
            if image_id == UNREADABLE:
                unreadable += 1
            else:
                detections[image_id] = coco_results(output, image_id, data)

    speed = run_model(model, batches, process, keep, precision=precision, watch=watch)
    parts = process.gather((detections, unreadable, masks))
    by_image = {image_id: records for part, _, _ in parts for image_id, records in part.items()}
    unreadable = sum(count for _, count, _ in parts)
    if not by_image:
        raise DataError(f"no image could be evaluated ({unreadable} unreadable)")
    results = [record for _, records in sorted(by_image.items()) for record in records]
    masks = any(with_masks for _, _, with_masks in parts) and data.has_masks
    scores = coco_scores(data, results, masks=masks, image_ids=list(by_image))
    return Scores(scores, len(by_image), unreadable, speed, results)


def coco_results(
    output: Mapping[str, Tensor], image_id: int, data: CocoData, *, mask_threshold: float = 0.5
) -> list[dict[str, Any]]:
    """Return the detections on one image as COCO records, with the category ids of the data.

    Args:
        output: ``boxes`` (N, 4) as x1, y1, x2, y2 in pixels, ``labels`` (N,), ``scores`` (N,) and perhaps ``masks``
            (N, 1, H, W) in [0, 1].
        image_id: Id of the image.
        data: Categories of the labels.
        mask_threshold: Value from which on a pixel is inside a mask.
    """
    boxes = output["boxes"].float().cpu().numpy().astype(np.float64)
    scores, labels = output["scores"].float().tolist(), output["labels"].tolist()
    masks = (output["masks"][:, 0] >= mask_threshold).cpu().numpy() if "masks" in output else None
    records = []
    for index, label in enumerate(labels):
        if not 1 <= label <= len(data.categories):  # a head made for COCO has more labels than smaller data
            continue
        x1, y1, x2, y2 = boxes[index].tolist()
        record = {
            "image_id": image_id,
            "category_id": data.categories[label - 1]["id"],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": scores[index],
        }
        if masks is not None:
            record["segmentation"] = encode_mask(masks[index])
        records.append(record)
    return records


def coco_scores(
    data: CocoData,
    results: Sequence[Mapping[str, Any]],
    *,
    masks: bool | None = None,
    image_ids: Sequence[int] | None = None,
) -> dict[str, float]:
    """Return COCO's scores in [0, 1]: ``box_AP``, ``box_AP50``, ``box_AP75``, ``box_APs``, ``box_APm``, ``box_APl``.

    AP is the mean over categories and over thresholds of 0.5 to 0.95 of the intersection over union; 50 and 75 are one
    threshold; s, m and l are the objects of less than 32 x 32, up to 96 x 96 and more pixels. The 100 best detections
    per image and category count. The evaluator returns -1 where no object falls in the category.
    Masks are evaluated too, as ``mask_AP`` and so on, by default if all results have one.

    Raises:
        DataError: If a result belongs to an image or category that the data do not have, or lacks a mask where masks
            are asked for.
    """
    _require_known(data, results)
    with_masks = [bool(record.get("segmentation")) for record in results]
    if masks is None:
        masks = bool(results) and all(with_masks) and data.has_masks
    if masks and not (all(with_masks) and data.has_masks):
        raise DataError(f"{with_masks.count(False)} results have no mask, or objects of {data.source} have none")
    scores: dict[str, float] = {}
    for name, kind in (("box", "bbox"), ("mask", "segm"))[: 2 if masks else 1]:
        values = evaluator_of(data, results, kind, image_ids).stats_as_dict
        scores |= {f"{name}_{score}": float(values[key]) for score, key in COCO_SCORES.items()}
    return scores


def evaluator_of(
    data: CocoData, results: Sequence[Mapping[str, Any]], kind: str, image_ids: Sequence[int] | None
) -> Any:
    """Return the evaluator of faster-coco-eval after it has evaluated results, of the kind "bbox" or "segm"."""
    library = require_evaluator()
    # Copies, because the evaluator writes into the records. Masks go without their boxes: with them the evaluator would
    # take the area of the box for the size of the mask.
    own = ("image_id", "category_id", "score", "bbox" if kind == "bbox" else "segmentation")
    truth = library.COCO({**data.to_dict(), "annotations": [dict(each) for each in data.annotations]})
    detections = truth.loadRes([{key: record[key] for key in own} for record in results])
    evaluator = library.COCOeval_faster(truth, detections, kind, print_function=lambda *_: None)
    if image_ids is not None:
        evaluator.params.imgIds = sorted(image_ids)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return evaluator


def _require_known(data: CocoData, results: Sequence[Mapping[str, Any]]) -> None:
    images, categories = {image["id"] for image in data.images}, set(data.labels)
    for record in results:
        if record["image_id"] not in images or record["category_id"] not in categories:
            raise DataError(
                f"a result is of image {record['image_id']} and category {record['category_id']}, which are not among "
                f"the {len(images)} images and the categories {sorted(categories)[:8]} of {data.source}"
            )
