"""COCO's average precision of detections, through the evaluator of the field, and detections as COCO writes them.

faster-coco-eval computes what pycocotools does, to rounding, in a twentieth of the time on images with many objects.

Source: Lin et al., Microsoft COCO, arXiv:1405.0312, and https://cocodataset.org/#detection-eval.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ....errors import DataError
from ....files import write_json
from ...data.coco import CocoData
from ...data.masks import decode_mask, encode_mask, require_evaluator

__all__ = ["coco_results", "coco_scores", "ground_truth_results", "read_results", "write_results"]
_FIGURES = {"AP": "AP_all", "AP50": "AP_50", "AP75": "AP_75", "APs": "AP_small", "APm": "AP_medium", "APl": "AP_large"}


def coco_results(
    output: Mapping[str, Tensor], image_id: int, data: CocoData, *, mask_threshold: float = 0.5
) -> list[dict[str, Any]]:
    """Returns what a detector found on one image as COCO's records, with the category ids of the data.

    Args:
        output: ``boxes`` (N, 4) as x1, y1, x2, y2 in pixels, ``labels`` (N,), ``scores`` (N,) and perhaps ``masks``
            (N, 1, H, W) in [0, 1].
        image_id: Id of the image.
        data: Tells the category of each label.
        mask_threshold: From which value on a pixel is inside.
    """
    boxes = output["boxes"].float().cpu().numpy().astype(np.float64)
    scores, labels = output["scores"].float().tolist(), output["labels"].tolist()
    masks = (output["masks"][:, 0] >= mask_threshold).cpu().numpy() if "masks" in output else None
    # A COCO-sized head has outputs for labels that smaller data do not have.
    known = [index for index, label in enumerate(labels) if 1 <= label <= len(data.categories)]
    found = []
    for index in known:
        x1, y1, x2, y2 = boxes[index].tolist()
        record = {
            "image_id": image_id,
            "category_id": data.categories[labels[index] - 1]["id"],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": scores[index],
        }
        if masks is not None:
            record["segmentation"] = encode_mask(masks[index])
        found.append(record)
    return found


def coco_scores(
    data: CocoData,
    results: Sequence[Mapping[str, Any]],
    *,
    masks: bool | None = None,
    image_ids: Sequence[int] | None = None,
    max_detections: int = 100,
) -> dict[str, float]:
    """Returns COCO's figures in [0, 1]: ``box_AP``, ``box_AP50``, ``box_AP75``, ``box_APs``, ``box_APm``, ``box_APl``.

    AP is the mean over categories and over thresholds of 0.5 to 0.95 of the intersection over union; 50 and 75 are one
    threshold; s, m and l are the objects of less than 32 x 32, up to 96 x 96 and more pixels. A figure is -1, as the
    evaluator has it, where there are no such objects.

    Args:
        data: The objects that should be found.
        results: Records as :func:`coco_results` returns them.
        masks: Whether to return ``mask_AP`` and so on as well; by default where all of the results have masks.
        image_ids: Images to evaluate on; all by default.
        max_detections: Detections of an image and category that count, the best ones first; 100 in COCO.

    Raises:
        DataError: If a result is of an image or a category that the data do not have, or has no mask where masks
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
        found = _evaluate(data, results, kind, image_ids, max_detections)
        scores |= {f"{name}_{figure}": float(found[key]) for figure, key in _FIGURES.items()}
    return scores


def _evaluate(data: CocoData, results, kind: str, image_ids, max_detections: int) -> dict[str, float]:
    library = require_evaluator()
    # Copies, because the evaluator writes into the records. For masks without their boxes: with them it would take the
    # area of the box for the size of a mask.
    own = ("image_id", "category_id", "score", "bbox" if kind == "bbox" else "segmentation")
    truth = library.COCO({**data.to_dict(), "annotations": [dict(found) for found in data.annotations]})
    found = truth.loadRes([{key: record[key] for key in own} for record in results])
    evaluator = library.COCOeval_faster(truth, found, kind, print_function=_silent)
    evaluator.params.maxDets = [1, min(10, max_detections), max_detections]
    if image_ids is not None:
        evaluator.params.imgIds = sorted(image_ids)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return evaluator.stats_as_dict


def _silent(*_: object) -> None:
    pass


def _require_known(data: CocoData, results: Sequence[Mapping[str, Any]]) -> None:
    images, categories = {image["id"] for image in data.images}, set(data.labels)
    for record in results:
        if record["image_id"] not in images or record["category_id"] not in categories:
            raise DataError(
                f"a result is of image {record['image_id']} and category {record['category_id']}, which are not among "
                f"the {len(images)} images and the categories {sorted(categories)[:8]} of {data.source}"
            )


def ground_truth_results(data: CocoData) -> list[dict[str, Any]]:
    """Returns the objects themselves as detections of score 1, crowds among them: their AP is 1.

    Where an image has more objects of a category than detections count it is less.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in data.images}
    found = []
    for annotation in data.annotations:
        record = {key: annotation[key] for key in ("image_id", "category_id", "bbox")} | {"score": 1.0}
        if "segmentation" in annotation:
            record["segmentation"] = encode_mask(
                decode_mask(annotation["segmentation"], *sizes[annotation["image_id"]])
            )
        found.append(record)
    return found


def write_results(results: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Writes detections as a COCO results file."""
    write_json(path, list(results), indent=None)


def read_results(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Returns the detections of a COCO results file.

    Raises:
        DataError: If it is none.
    """
    try:
        with open(path, "rb") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
    fields = {"image_id", "category_id", "score", "bbox"}
    if not isinstance(content, list) or not all(isinstance(item, dict) and fields <= item.keys() for item in content):
        raise DataError(f"{path} is no list of COCO results with {', '.join(sorted(fields))}")
    return content
