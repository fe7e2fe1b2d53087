"""Detections for tests."""

from typing import Any

from shuffle_attention.sanet.data.coco import CocoData
from shuffle_attention.sanet.data.masks import decode_mask, encode_mask


def ground_truth_results(data: CocoData) -> list[dict[str, Any]]:
    """Return the objects themselves, crowds among them, as detections of score 1, whose AP is 1."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in data.images}
    results = []
    for annotation in data.annotations:
        record = {key: annotation[key] for key in ("image_id", "category_id", "bbox")} | {"score": 1.0}
        if "segmentation" in annotation:
            mask = decode_mask(annotation["segmentation"], *sizes[annotation["image_id"]])
            record["segmentation"] = encode_mask(mask)
        results.append(record)
    return results
